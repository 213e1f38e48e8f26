"""predict.py and strangers' files: images, names, links. The networks are tested elsewhere."""

import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmivit.apis import predict
from mmivit.errors import CheckpointError
from mmivit.utils.files import RefusedFile
from tests.conftest import ROOT

READER = """
import resource, sys
from pathlib import Path
from mmivit.apis.predict import read_image
from mmivit.utils.files import RefusedFile
size = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 2**29,) * 2)
for path in sys.argv[1:]:
    try:
        print(path, read_image(Path(path)).shape)
    except RefusedFile as error:
        print(path, error)
"""


def png(width, height):
    """A PNG of that size without its pixels."""

    def chunk(kind, data):
        return (
            struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
        )

    header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(10**6))
    return (
        b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', pixels) + chunk(b'IEND', b'')
    )


# A part after the pixels says that it is 1 GiB long.
SWOLLEN_PNG = png(40, 30)[:-12] + struct.pack('>I', 2**30) + b'tEXt'


def test_decompression_bombs_are_not_decoded(tmp_path):
    sizes = dict(bomb=(50_000, 50_000), large=(30_000, 30_000), line=(2**31 - 1, 1))
    for name, size in sizes.items():
        (tmp_path / f'{name}.png').write_bytes(png(*size))
    (tmp_path / 'bomb.bmp').write_bytes(
        b'BM' + struct.pack('<IIIIiiHHI', 99, 0, 54, 40, 60_000, 60_000, 1, 24, 0) + bytes(40)
    )
    Image.new('RGB', (40, 30)).save(tmp_path / 'good.png')
    # Found by the fuzzer: OpenCV 5.0 took 4 GB and 27 s for a hundred bytes.
    (tmp_path / 'part.png').write_bytes(SWOLLEN_PNG)
    names = sorted(os.listdir(tmp_path))
    done = subprocess.run(
        [sys.executable, '-c', READER, *names],
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert lines.pop(names.index('part.png')) == 'part.png not an image that can be read'
    assert lines.pop(names.index('good.png')) == 'good.png (30, 40, 3)'
    assert all('more than 89 megapixels' in line for line in lines), lines


@pytest.mark.parametrize(
    'content',
    [b'', b'not an image', b'\x89PNG\r\n\x1a\n', png(40, 40)[:60], b'%!PS-Adobe-3.0 EPSF-3.0\n'],
)
def test_what_is_no_image(content, tmp_path):
    (tmp_path / 'a.png').write_bytes(content)
    with pytest.raises(RefusedFile, match='not an image'):
        predict.read_image(tmp_path / 'a.png')


def test_pipes_and_folders_are_not_read(tmp_path):
    os.mkfifo(tmp_path / 'a.png')
    (tmp_path / 'b.png').symlink_to('/dev/zero')
    (tmp_path / 'c.png').mkdir()
    assert [str(name) for _, name in predict.find_images([tmp_path], tmp_path / 'out')] == [
        'a.png',
        'b.png',
    ]
    for name in ('a.png', 'b.png', 'c.png'):
        with pytest.raises(RefusedFile, match='pipe'):
            predict.read_image(tmp_path / name)


WEIGHTS = dict(weight=torch.zeros(1, 1), bias=torch.zeros(1))


class Blind:
    def __init__(self, *args):
        self.model = torch.nn.Linear(1, 1)

    def __call__(self, image):
        return image, dict(detections=[])


@pytest.fixture
def run(tmp_path, monkeypatch):
    """predict() on ``photos``, with a network that finds nothing."""
    (tmp_path / 'config.py').write_text("default_scope = 'mmdet'\n")
    torch.save(dict(state_dict=WEIGHTS), tmp_path / 'x.pth')
    (tmp_path / 'photos').mkdir()
    Image.new('RGB', (40, 30), 'red').save(tmp_path / 'photos' / 'a.png')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(predict, 'Detector', Blind)
    return lambda **options: predict.predict('config.py', 'x.pth', ['photos'], 'out', **options)


def tree(folder):
    return sorted(str(p.relative_to(folder)) for p in Path(folder).rglob('*') if not p.is_dir())


def test_any_name_is_written_below_out(run):
    names = [
        '-rf.png',
        'a\nb\x1b[31m.png',
        os.fsdecode(b'\xff\xfe.png'),
        ' .png',
        '....png',
        '$(x).png',
    ]
    for name in names:
        Path('photos', name).write_bytes(Path('photos/a.png').read_bytes())
    before = tree('.')
    report = run()
    assert not report.failed
    new = set(tree('.')) - set(before)
    assert len(new) == 2 * (len(names) + 1)
    assert all(path.startswith('out/') for path in new)
    for path in new:
        if path.endswith('.json'):
            assert json.loads(Path(path).read_text())['width'] == 40


def test_a_name_too_long_fails_alone(run):
    Path('photos', 'n' * 250 + '.png').write_bytes(Path('photos/a.png').read_bytes())
    report = run()
    assert [path.name for path in report.written] == ['a.png']
    assert next(iter(report.failed.values())).startswith('[Errno 36]')


def test_links_among_the_photos_are_not_climbed(run):
    Path('private').mkdir()
    Path('private/secret.png').write_bytes(Path('photos/a.png').read_bytes())
    Path('photos/up').symlink_to('../private')
    assert [path.name for path in run().written] == ['a.png']


@pytest.mark.parametrize('link', ['out/pictures', 'out/predictions', 'out/pictures/deep'])
def test_links_out_of_out_are_refused(link, run):
    Path('photos/deep').mkdir()
    Path('photos/deep/b.png').write_bytes(Path('photos/a.png').read_bytes())
    Path('elsewhere').mkdir()
    Path(link).parent.mkdir(parents=True)
    Path(link).symlink_to(Path('elsewhere').resolve())
    with pytest.raises(PermissionError, match='a link out of out'):
        run(force=True)
    assert not os.listdir('elsewhere')


def test_links_left_where_files_go_are_replaced_not_followed(run):
    Path('precious').write_text('mine')
    for name in ('a.png.jpg', '.a.png.jpg.partial'):
        link = Path('out/pictures', name)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(Path('precious').resolve())
    with pytest.raises(FileExistsError):
        run()
    run(force=True)
    assert Path('precious').read_text() == 'mine'
    assert not Path('out/pictures/a.png.jpg').is_symlink()


@pytest.mark.parametrize(
    'meta',
    [
        [1],
        dict(classes=[dict()]),
        dict(classes=5),
        dict(palette=[[1, 2]]),
        dict(palette=[[999, 0, 0]]),
    ],
)
def test_forged_classes_are_refused(meta, run):
    torch.save(dict(state_dict={}, meta=dict(dataset_meta=meta)), 'x.pth')
    with pytest.raises(CheckpointError, match='dataset_meta'):
        run()


@pytest.mark.parametrize('bias', [{}, dict(bias=torch.zeros(2))])
def test_weights_of_another_model_are_refused(bias, run):
    torch.save(dict(state_dict=dict(weight=torch.zeros(1, 1), **bias)), 'x.pth')
    with pytest.raises(CheckpointError, match=r'x\.pth: it is of another model: 1 of the 2.*bias'):
        run()
    assert not Path('out').exists()


@pytest.mark.parametrize('meta', [None, {}, dict(classes=('a', 'b'), palette='random')])
def test_sound_classes_are_taken(meta, run):
    torch.save(dict(state_dict=WEIGHTS, meta=dict(dataset_meta=meta)), 'x.pth')
    assert run().written


@pytest.mark.parametrize(
    ('shape', 'factor'), [((30, 40), 16), ((480, 9), 8), ((1, 20_000), 1), ((2000, 3000), 1)]
)
def test_small_pictures_are_enlarged_but_not_without_end(shape, factor):
    assert predict._enlargement(*shape) == factor


def test_its_own_pictures_are_no_inputs(run):
    Path('photos/pictures').mkdir()
    Path('photos/pictures/b.png').write_bytes(Path('photos/a.png').read_bytes())
    found = lambda inputs, out: [str(name) for _, name in predict.find_images(inputs, Path(out))]  # noqa: E731
    assert found(['photos'], 'out') == ['a.png', 'pictures/b.png']
    assert found([Path('photos').absolute()], 'photos') == ['a.png']
    assert found(['photos/pictures'], 'photos') == ['b.png']


def test_a_picture_too_long_for_a_jpeg_fails_alone(run, monkeypatch):
    Image.new('RGB', (65_501, 1)).save('photos/long.png')
    report = run()
    assert [path.name for path in report.written] == ['a.png']
    assert '65500 pixels' in next(iter(report.failed.values()))


def test_an_image_is_read_as_opencv_does(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (7, 9, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / 'a.png')
    assert (predict.read_image(tmp_path / 'a.png') == pixels[..., ::-1]).all()
