"""Training as a user starts it, killed and started again; and faults for a config to plant."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import NamedTuple

import torch
from mmengine.config import Config
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from tests.conftest import CONFIGS, ROOT

CONFIG = {'detection': 'mask_rcnn_ivit_shapes.py', 'segmentation': 'upernet_ivit_shapes.py'}
SIZE = 64  # of the images, pixels
STEPS_PER_EPOCH = 4  # 16 images, 4 a step
PATIENCE = 300  # seconds of silence after which a run counts as hanging


@HOOKS.register_module()
class PoisonHook(Hook):
    """Makes the images of one step on one process NaN."""

    def __init__(self, step: int, rank: int) -> None:
        self.step, self.rank = step, rank

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter + 1 == self.step and get_rank() == self.rank:
            data_batch['inputs'] = [image * torch.nan for image in data_batch['inputs']]


@HOOKS.register_module()
class KillHook(Hook):
    """SIGKILL to one process before a step, unless torchrun has restarted it."""

    def __init__(self, step: int, rank: int) -> None:
        self.step, self.rank = step, rank

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        first = os.environ['TORCHELASTIC_RESTART_COUNT'] == '0'
        if first and runner.iter + 1 == self.step and get_rank() == self.rank:
            os.kill(os.getpid(), signal.SIGKILL)


@HOOKS.register_module()
class FullDiskHook(Hook):
    """From one step on no file can grow beyond 1 MiB: like a full disk, but needs no root."""

    def __init__(self, step: int) -> None:
        self.step = step

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter + 1 == self.step:
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))


class Training:
    """A run of ``tools/train.py --resume``, to be started as often as needed.

    Every loss is logged, a checkpoint written every ``interval`` steps (in detection every epoch).
    It is meant to be deterministic: twice the same to the last bit.

    Args:
        folder: working directory, with ``data/shapes`` of 16 images of SIZE in it.
        name: of the work dir within.
        task: one of CONFIG.
        steps: until the end; in detection whole epochs.
        processes: more than 1 are started by ``tools/dist_train.sh``.
        interval: steps between checkpoints.
        val_interval: steps between evaluations.
        hooks: planted in the config.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        task: str,
        steps: int,
        processes: int = 1,
        interval: int = 1,
        val_interval: int = 0,
        hooks: tuple[dict, ...] = (),
    ) -> None:
        self.folder, self.work_dir = folder, folder / name
        self.log = folder / f'{name}.log'
        cfg = Config.fromfile(CONFIGS / CONFIG[task])
        cfg.custom_imports.imports.append('tests.faults')
        cfg.custom_hooks = list(hooks)
        cfg.randomness = dict(seed=0, deterministic=True)
        cfg.model.backbone.drop_path_rate = 0.2
        cfg.train_dataloader.batch_size = 4 // processes
        cfg.val_dataloader.batch_size = 1
        cfg.val_dataloader.dataset.pipeline[1].scale = (SIZE, SIZE)
        cfg.log_processor.window_size = 1
        cfg.default_hooks.logger.interval = 1
        if task == 'detection':
            cfg.train_cfg.max_epochs = steps // STEPS_PER_EPOCH
            cfg.train_cfg.val_interval = (val_interval or steps) // STEPS_PER_EPOCH
        else:
            cfg.model.data_preprocessor.size = (SIZE, SIZE)
            cfg.train_cfg.max_iters = steps
            cfg.train_cfg.val_interval = val_interval or steps
            cfg.default_hooks.checkpoint.interval = interval
        config = folder / f'{name}.py'
        cfg.dump(config)
        alone = [sys.executable, ROOT / 'tools/train.py', config]
        many = [ROOT / 'tools/dist_train.sh', config, processes]
        arguments = [*(alone if processes == 1 else many), '--work-dir', name, '--resume']
        self.command = list(map(str, arguments))
        self.mark = f'MMIVIT_TEST_RUN={config}'

    def start(self, **env: str) -> None:
        """Start, or start again."""
        name, value = self.mark.split('=')
        always = {
            'PORT': '29714',
            'PATH': f'{Path(sys.executable).parent}:{os.environ["PATH"]}',
            'PYTHONPATH': f'{ROOT}:{os.environ.get("PYTHONPATH", "")}',
        }
        self.started = time.time()
        self.seen = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open('ab') as log:
            self.process = subprocess.Popen(
                self.command,
                cwd=self.folder,
                stdout=log,
                stderr=log,
                env={**os.environ, **always, name: value, **env},
            )

    def output(self) -> str:
        """What was printed since the last start."""
        with self.log.open('rb') as log:
            log.seek(self.seen)
            return log.read().decode(errors='replace')

    def wait_for(self, condition: Callable[[], bool]) -> bool:
        """Wait until something is so; False if the run ends before.

        Raises:
            AssertionError: nothing has been printed for PATIENCE seconds.
        """
        size, deadline = -1, 0
        while self.process.poll() is None:
            if condition():
                return True
            if size != self.log.stat().st_size:
                size, deadline = self.log.stat().st_size, time.monotonic() + PATIENCE
            if time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f'it hangs:\n{self.output()[-3000:]}')
            time.sleep(0.005)
        return False

    def wait(self) -> int:
        """Wait until it has ended by itself; its exit status."""
        self.wait_for(lambda: False)
        self.kill()  # what a dead process has left
        return self.process.returncode

    def pids(self, rank: int | None = None) -> list[int]:
        """All its processes, or those of a rank."""
        marks = {self.mark} | ({f'RANK={rank}'} if rank is not None else set())
        found = []
        for entry in Path('/proc').glob('[0-9]*/environ'):
            with suppress(OSError):  # it has ended, or is another user's
                if marks <= set(entry.read_bytes().decode(errors='replace').split('\0')):
                    found.append(int(entry.parent.name))
        return found

    def kill(self) -> None:
        """SIGKILL to all its processes."""
        kill(self.pids())
        self.process.wait()

    def checkpoints(self) -> list[Path]:
        """Those there are, the newest last."""
        return sorted(self.work_dir.glob('[ei]*_*.pth'), key=lambda path: path.stat().st_mtime_ns)

    def being_written(self) -> list[Path]:
        """The temporary files of checkpoints, without those of earlier starts."""
        found = []
        for path in self.work_dir.glob('.*.partial'):
            with suppress(FileNotFoundError):  # renamed meanwhile
                if path.stat().st_mtime > self.started:
                    found.append(path)
        return found

    def records(self) -> list[dict]:
        """Everything logged so far, in order, of all its starts."""
        lines = []
        for file in sorted(self.work_dir.glob('*/vis_data/scalars.json')):
            lines += file.read_text().splitlines()
        records = []
        for line in lines:
            with suppress(json.JSONDecodeError):  # killed while it was written
                records.append(json.loads(line))
        return records

    def losses(self) -> dict[int, list[float]]:
        """All values of the loss logged, by step; more than one where steps were repeated."""
        losses = {}
        for record in self.records():
            if 'loss' in record:
                losses.setdefault(record['step'], []).append(record['loss'])
        return losses


def kill(pids: list[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


class Toll(NamedTuple):
    """What a series of kills has cost."""

    moments: Counter  # what the run was doing when it was killed
    steps_lost: list[int]  # by each kill: trained, logged and to be trained again
    damaged: int  # checkpoints damaged on purpose, of those the kills have left
    passed_over: int  # checkpoints refused when the run was started again


def kill_repeatedly(training: Training, kills: int, processes: int) -> Toll:
    """Kill a run again and again, resume it each time, and let it reach the end.

    The moments are drawn, and by turns made to fall into the writing of a checkpoint, a step, an
    evaluation. Of many processes one is killed, and the others have to end by themselves. As a
    writer that renames nothing would leave it, a file cut short is put in the place of the latest
    checkpoint after every other kill that meets one being written; after every fourth kill some
    bytes in the middle of the latest are lost.
    """
    random = Random(0)
    moments, reached, resumed, damaged, passed_over = Counter(), [], [], 0, 0

    def begin():
        nonlocal passed_over
        training.start()
        assert training.wait_for(lambda: '(train)' in training.output()), training.output()[-3000:]
        output = training.output()
        found = re.search(r'resumed epoch: \d+, iter: (\d+)', output)
        resumed.append(int(found[1]) if found else 0)
        passed_over += len(set(re.findall('Passed over: .*', output)))

    for number in range(kills):
        begin()
        rank = random.randrange(processes)
        victims = training.pids(rank) if processes > 1 else [training.process.pid]
        # Before there are checkpoints it would only begin again.
        training.wait_for(lambda: len(list(training.work_dir.glob('*_*.pth'))) > 1)
        turn = ('saving', 'step', 'evaluation', 'any')[number % 4]
        if turn == 'saving':
            alive = training.wait_for(training.being_written)
        elif turn == 'evaluation':
            alive = training.wait_for(lambda: '(val)' in training.output())
        else:
            steps = random.randint(1, 1 if turn == 'step' else 3)
            training.wait_for(lambda steps=steps: training.output().count('(train)') >= steps)
            time.sleep(random.uniform(0, 0.5))
            alive = training.process.poll() is None
        assert alive, f'the end came after {number} of {kills} kills: it needs more steps'
        kill(victims)
        if processes > 1:
            assert training.wait() != 0  # and it does end
            assert 'SIGKILL' in training.output()
        training.kill()

        partial = training.being_written()
        events = re.findall(r'\((?:train|val)\).*', training.output())
        evaluating = events[-1].startswith('(val)') and not re.search('mIoU|mAP', events[-1])
        moments['saving' if partial else 'evaluation' if evaluating else 'step'] += 1
        reached.append([r['step'] for r in training.records() if 'loss' in r][-1])

        whole = training.checkpoints()
        if len(whole) < 2:
            continue
        if partial and moments['saving'] % 2:
            latest = partial[0].with_name(partial[0].name[1:].removesuffix('.partial'))
            partial[0].replace(latest)
            (training.work_dir / 'last_checkpoint').write_text(str(latest))
            damaged += not zipfile.is_zipfile(latest)
        elif turn == 'step':
            with whole[-1].open('r+b') as file:
                file.seek(whole[-1].stat().st_size // 2)
                file.write(bytes(1024))
            damaged += 1
    begin()
    assert training.wait() == 0, training.output()[-3000:]
    assert all(resumed[1:]), f'it went on from {resumed}'
    lost = [before - after for before, after in zip(reached, resumed[1:], strict=True)]
    return Toll(moments, lost, damaged, passed_over)
