"""What is fuzzed, one target per process; :mod:`tests.fuzz.run` starts them.

    python -m tests.fuzz.targets NAME FOLDER [options of libFuzzer]

atheris guides the inputs by the coverage of mmivit and of the Python that reads for it: zipfile,
pickletools, torch's unpickler, Pillow. The C++ of torch, Pillow and OpenCV and the Rust of
safetensors run, but their coverage is not seen.

A finding is anything but a documented error: another exception, a crash of the interpreter, an
input that takes more than TIMEOUT seconds or MEMORY, a message that is not one printable line, a
program started, a connection, or anything written outside the folder for it.
"""
# ruff: noqa: E402 - what is instrumented comes first

import io
import os
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

import atheris

os.environ.update(TQDM_DISABLE='1', OPENCV_LOG_LEVEL='OFF')
TIMEOUT = 20  # seconds for one input, on a machine that has other work
MEMORY = 4096  # MiB of the process, of which torch and mmdet take 600

for name in ('pickletools', 'zipfile'):  # imported by now, uninstrumented
    sys.modules.pop(name, None)
with atheris.instrument_imports(include=['PIL', 'pickletools', 'zipfile']):
    import pickletools  # noqa: F401
    import zipfile

    from PIL import Image

    Image.init()  # imports the readers of all formats

import cv2
import numpy as np
import torch
import torch._weights_only_unpickler as unpickler
from mmengine.config import Config
from mmengine.logging import MessageHub
from safetensors.torch import save

unpickler.Unpickler.load = atheris.instrument_func(unpickler.Unpickler.load)
with atheris.instrument_imports(include=['mmivit']):
    from mmivit.apis import predict_files
    from mmivit.apis.inferencers import Prediction
    from mmivit.apis.predict import predict
    from mmivit.datasets.loaders import ImagePipeline
    from mmivit.errors import CheckpointError
    from mmivit.models import IViT
    from mmivit.weights import checkpoint, converters, kinds

ARCH = dict(depths=(1, 1, 2, 1), widths=(8, 16, 32, 32))
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = ('os.mkdir', 'os.rename', 'os.remove', 'os.rmdir', 'os.symlink', 'os.link', 'os.truncate')
PROGRAMS = (
    'os.system',
    'os.exec',
    'os.posix_spawn',
    'os.fork',
    'subprocess.Popen',
    'socket.connect',
)
_watched: list[Path] = []


class Escape(BaseException):
    """Something the code under test must never do; no handler of it may swallow this."""


def _watch(event: str, arguments: tuple) -> None:
    """Audit hook: while a target runs, files change only below the folder it may write."""
    if not _watched:
        return
    if event in PROGRAMS:
        raise Escape(f'{event} {arguments}')
    writes = event == 'open' and arguments[2] is not None and arguments[2] & WRITES
    if writes or event in CHANGES:
        for path in arguments[: 1 + (event == 'os.rename')]:
            if isinstance(path, (str, bytes)):
                folder, name = os.path.split(os.path.abspath(os.fsdecode(path)))
                place = os.path.join(os.path.realpath(folder), name)
                if not Path(os.path.realpath(place) if writes else place).is_relative_to(
                    _watched[0]
                ):
                    raise Escape(f'{event} of {path!r}')


@contextmanager
def confined(folder: Path):
    _watched.append(folder.resolve())
    try:
        yield
    finally:
        _watched.clear()


def one_line(error: Exception) -> None:
    assert str(error).isprintable(), f'not one printable line: {error!r}'


class Checkpoints:
    """Bytes as a checkpoint; the first says of which kind, and what is made right around them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def seeds(self) -> list[bytes]:
        hub = MessageHub('fuzz')
        for value in (1.0, 2.0):
            hub.update_scalar('loss', value)
        weights = {'a.weight': torch.ones(4), 'b': torch.ones(2, 2).half()}
        contents = [
            weights,
            dict(state_dict=weights, meta=dict(epoch=1), message_hub=hub.state_dict()),
        ]
        seeds = [b'S' + save(weights), b'H' + save(weights)[8:-24]]
        for content in contents:
            new, old = io.BytesIO(), io.BytesIO()
            torch.save(content, new)
            torch.save(content, old, _use_new_zipfile_serialization=False)
            new.seek(0)
            pickled = torch._C.PyTorchFileReader(new).get_record('data.pkl')
            seeds += [b'R' + new.getvalue(), b'R' + old.getvalue(), b'P' + pickled]
        return seeds

    def __call__(self, data: bytes) -> None:
        kind, data = data[:1], data[1:]
        path = self.folder / ('x.safetensors' if kind in (b'S', b'H') else 'x.pth')
        if kind == b'H':  # a header with its length, and numbers
            data = len(data).to_bytes(8, 'little') + data + bytes(64)
        path.write_bytes(data)
        if kind == b'P':  # a pickle in an archive, whose checksum then fits
            with zipfile.ZipFile(path, 'w') as archive:
                for name, content in dict(version=b'3\n', byteorder=b'little').items():
                    archive.writestr(f'x/{name}', content)
                archive.writestr('x/data.pkl', data)
                for key in range(8):
                    archive.writestr(f'x/data/{key}', bytes(32))
        for new in (True, False):  # as torch reads since 2.6, and before
            checkpoint.HAS_ALLOW_LIST = new
            try:
                with confined(self.folder / 'out'):
                    checkpoint.find_state_dict(checkpoint.read_checkpoint(path))
            except (CheckpointError, OSError) as error:
                one_line(error)


class Converter:
    """A state dict that converts, with names, shapes, types and options changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        own = IViT(ARCH, head_dim=16).state_dict()
        mixed = IViT(ARCH, head_dim=16, attention='interactive', interaction='both').state_dict()
        plain = IViT(ARCH, head_dim=16, attention='mhsa').state_dict()
        caformer = {
            name: tensor[:, :, None, None] if '.fc' in name or '.pwconv' in name else tensor
            for name, tensor in plain.items()
            if not name.startswith('norm')
        }
        authors = {}
        for name, tensor in plain.items():
            name = name.replace('.blocks.', '.').replace('stem.conv', 'downsample_layers.0.conv')
            name = name.replace('stem.norm', 'downsample_layers.0.post_norm')
            for i in (1, 2, 3):
                old = f'downsample_layers.{i}.'
                name = name.replace(f'stages.{i}.downsample.norm.', f'{old}pre_norm.')
                name = name.replace(f'stages.{i}.downsample.', old)
            authors[name] = tensor
        detector = {f'backbone.{name}': tensor for name, tensor in own.items()}
        self.states = [own, mixed, plain, caformer, authors, detector]
        for state in self.states:  # the first time takes seconds: torch imports more of itself
            converters.convert(state)

    def seeds(self) -> list[bytes]:
        generator = np.random.default_rng(0)
        return [bytes([kind, *generator.bytes(size)]) for kind in range(6) for size in (0, 20, 99)]

    def __call__(self, data: bytes) -> None:
        take = atheris.FuzzedDataProvider(data[1:])
        state = dict(self.states[(data[0] if data else 0) % len(self.states)])
        for _ in range(take.ConsumeIntInRange(0, 8)):
            self._change(state, take)
        options = {}
        if take.ConsumeBool():
            options = dict(
                source=take.PickValueInList([None, *kinds.SOURCES]),
                arch=take.PickValueInList([None, 'nano', 'base', 'huge', '']),
                target=take.PickValueInList(list(converters.TARGETS)),
                attention=take.PickValueInList([None, 'imhsa', 'mhsa', 'interactive']),
                in_channels=take.PickValueInList([None, 1, 6, 0, -1, 4096]),
                drop=[take.ConsumeUnicode(8)] if take.ConsumeBool() else [],
            )
        suffix = take.PickValueInList(['pth', 'safetensors', None, None, None, None])
        text = all(c < '\ud800' or c > '\udfff' for c in ''.join(state))
        if not text or sum(tensor.nbytes for tensor in state.values()) > 2**24:
            suffix = None  # not to be written
        try:
            with confined(self.folder / 'out'):
                if suffix is None:
                    converters.convert(state, **options)[1].table()
                else:
                    source = self.folder / 'out' / f'x.{suffix}'
                    checkpoint.write_checkpoint(source, state, {}, force=True)
                    converters.convert_file(source, source.with_stem('y'), force=True, **options)
        except (CheckpointError, OSError) as error:
            one_line(error)
        except ValueError:  # an option that is none
            if options.get('arch') not in ('huge', ''):
                raise

    def _change(self, state: dict, take) -> None:
        names = list(state) or ['']
        name = names[take.ConsumeIntInRange(0, len(names) - 1)]
        what = take.ConsumeIntInRange(0, 7)
        if what == 0:
            state.pop(name, None)
        elif what == 1:
            state[take.ConsumeUnicode(40)] = torch.zeros(2)
        elif what == 2:
            stage, block = take.ConsumeIntInRange(0, 5), take.ConsumeInt(4)
            part = take.PickValueInList(['norm1.weight', 'token_mixer.interaction_q', 'x', ''])
            state[f'stages.{stage}.blocks.{block}.{part}'] = torch.zeros(8)
        elif what == 3:
            shape = [take.ConsumeIntInRange(0, 9) for _ in range(take.ConsumeIntInRange(0, 5))]
            state[name] = torch.zeros(shape)
        elif what == 4:  # enormous, in no memory
            shape = [take.ConsumeIntInRange(0, 2**20) for _ in range(take.ConsumeIntInRange(1, 2))]
            state[name] = torch.zeros(1).expand(shape)
        elif what == 5 and name in state and state[name].numel() < 2**20:  # .to() makes it real
            kinds = [torch.float64, torch.bfloat16, torch.int8, torch.bool, torch.complex64]
            state[name] = state[name].to(take.PickValueInList(kinds))
        elif what == 6 and name in state:
            state[f'{take.ConsumeUnicode(4)}{name}'] = state.pop(name)
        elif what == 7:
            for other in [n for n in state if n.startswith(name.rpartition('.')[0])]:
                del state[other]


class Blind:
    """A detector that finds nothing."""

    def __init__(self, *args: object) -> None:
        self.pipeline = ImagePipeline([dict(type='LoadImageFromFile')], 'mmdet')

    def __call__(self, batch: list, steady: bool = False) -> list:
        return [Prediction(each.sample['img'][:8, :8], dict(detections=[])) for each in batch]


class Images:
    """A folder of files with any names, and links; through predict, with the network left out."""

    SUFFIXES = ('.png', '.jpg', '.bmp', '.tif', '.webp', '.ppm', '', '.PNG')

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / 'config.py').touch()
        cfg = dict(default_scope='mmdet', test_dataloader=dict(dataset=dict()))
        Config.fromfile = staticmethod(lambda path: Config(cfg))
        predict_files.Detector = Blind

    def seeds(self) -> list[bytes]:
        seeds = []
        picture = Image.fromarray(np.arange(8 * 9 * 3, dtype=np.uint8).reshape(8, 9, 3))
        for i, kind in enumerate(('PNG', 'JPEG', 'BMP', 'TIFF', 'WEBP', 'PPM', 'GIF', 'JPEG2000')):
            buffer = io.BytesIO()
            picture.save(buffer, kind)
            for name in (b'a', b'-x', b'b\n\x1b[31m', b'\xff\xfe', b'd/e', b'..'):
                seeds.append(bytes([i, len(name), *name, 0]) + buffer.getvalue())
        for link in range(1, 8):
            seeds.append(bytes([0, 1, 97, link]) + seeds[0][4:])
        for name in (b'n' * 245, b'd/' * 50):
            seeds.append(bytes([0, len(name), *name, 0]) + seeds[0][4:])
        return seeds

    def __call__(self, data: bytes) -> None:
        if len(data) < 3:
            return
        photos, out = self.folder / 'photos', self.folder / 'out'
        for old in (photos, out):
            shutil.rmtree(old)
            old.mkdir()
        name = data[2 : 2 + data[1]].replace(b'\0', b'')
        parts = [p[:250] for p in name.split(b'/') if p not in (b'', b'.', b'..')][:20] or [b'x']
        path = photos.joinpath(*map(os.fsdecode, parts))
        path = path.with_name(path.name + self.SUFFIXES[data[0] % len(self.SUFFIXES)])
        rest = data[2 + data[1] :]
        try:
            self._plant(photos, out, path, rest[0] if rest else 0)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(rest[1:])
        except OSError:
            return
        try:
            with confined(out):
                report = predict(
                    str(self.folder / 'config.py'), str(self.folder / 'x.pth'), [photos], out
                )
                assert len(report.written) + len(report.failed) >= 1
        except (CheckpointError, OSError):
            pass

    def _plant(self, photos: Path, out: Path, path: Path, bits: int) -> None:
        """Links out of both folders, and a pipe."""
        elsewhere = self.folder / 'elsewhere'
        if bits & 1:
            (photos / 'climb').symlink_to(elsewhere)
            (photos / 'z.png').symlink_to('/dev/zero')
        if bits & 2:
            (out / 'pictures').symlink_to(elsewhere)
        if bits & 4:
            os.mkfifo(photos / 'pipe.png')
            (photos / 'folder.png').mkdir()
            (out / 'predictions').mkdir()
            (out / 'predictions' / f'.{path.name}.json.partial').symlink_to(elsewhere / 'planted')


TARGETS = dict(checkpoints=Checkpoints, converter=Converter, images=Images)


def main() -> None:
    name, folder = sys.argv[1], Path(sys.argv[2]).resolve()
    for sub in ('out', 'photos', 'elsewhere', 'corpus', 'findings'):
        (folder / sub).mkdir(exist_ok=True)
    os.chdir(folder)
    os.environ['TMPDIR'] = str(folder / 'out')
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    target = TARGETS[name](folder)
    for i, seed in enumerate(target.seeds()):
        (folder / 'corpus' / f'seed-{i}').write_bytes(seed)
    sys.addaudithook(_watch)
    options = [
        f'-timeout={TIMEOUT}',
        f'-rss_limit_mb={MEMORY}',
        f'-artifact_prefix={folder}/findings/',
        '-max_len=8192',
        '-print_final_stats=1',
    ]
    atheris.Setup([sys.argv[0], *options, *sys.argv[3:], str(folder / 'corpus')], target)
    atheris.Fuzz()


if __name__ == '__main__':
    main()
