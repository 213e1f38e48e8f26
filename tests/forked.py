"""Python scripts in processes that have the stack imported already.

Most of a command's time goes into importing torch, mmdet and mmseg: 5 seconds of a core. A process
that has done so once, and nothing else, is forked for every script instead. What a script finds is
a new process but for these imports, none of them mmivit's; what must not be there before it begins
(the environment of a new user, `mim`, an inferencer in an empty folder) is tested in fresh ones.
"""

import os
import runpy
import subprocess
import sys
import tempfile
from multiprocessing import get_context
from pathlib import Path

STACK = ['torch', 'mmengine.runner', 'mmcv.ops', 'mmdet.apis', 'mmseg.apis', 'timm']

context = get_context('forkserver')
context.set_forkserver_preload(STACK)


class Forked:
    """A script that runs, as ``subprocess.Popen`` has it.

    Args:
        script: path of it.
        args: its arguments.
        cwd: its working directory.
        env: variables beside those of this process.
    """

    def __init__(self, script: Path, args: tuple, cwd: Path, env: dict) -> None:
        self.args = [str(script), *map(str, args)]
        self.folder = tempfile.TemporaryDirectory()
        env = {**os.environ, **{name: str(value) for name, value in env.items()}}
        self.process = context.Process(
            target=_run, args=(self.args, str(cwd), self.folder.name, env)
        )
        self.process.start()

    def wait(self, timeout: float) -> subprocess.CompletedProcess:
        """The finished process, output as text.

        Raises:
            subprocess.TimeoutExpired: it has not ended after as many seconds, and was killed.
        """
        self.process.join(timeout)
        late = self.process.is_alive()
        if late:
            self.process.kill()
            self.process.join()
        stdout, stderr = (
            Path(self.folder.name, name).read_text(errors='replace') for name in ('1', '2')
        )
        self.folder.cleanup()
        if late:
            raise subprocess.TimeoutExpired(self.args, timeout, stdout, stderr)
        return subprocess.CompletedProcess(self.args, self.process.exitcode, stdout, stderr)


def _run(args: list[str], cwd: str, folder: str, env: dict[str, str]) -> None:
    for descriptor in (1, 2):
        file = os.open(Path(folder, str(descriptor)), os.O_WRONLY | os.O_CREAT)
        os.dup2(file, descriptor)
        os.close(file)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.argv = args
    sys.path.insert(0, str(Path(args[0]).parent))  # as Python does
    runpy.run_path(args[0], run_name='__main__')
