"""Strangers' images: found, read, or refused before they are decoded."""

import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmivit.apis.images import find_images, read_image, viewable
from mmivit.datasets.loaders import ImagePipeline
from mmivit.utils.files import RefusedFile
from tests.conftest import ROOT, TIMEOUT

STOCK = ImagePipeline([dict(type='LoadImageFromFile')], None)
READER = """
import resource, sys
from pathlib import Path
from mmivit.apis.images import read_image
from mmivit.datasets.loaders import ImagePipeline
from mmivit.utils.files import RefusedFile
pipeline = ImagePipeline([dict(type='LoadImageFromFile')], None)
size = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 2**29,) * 2)
for path in sys.argv[1:]:
    try:
        print(path, read_image(Path(path), pipeline)['img'].shape)
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
        timeout=TIMEOUT,
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
        read_image(tmp_path / 'a.png', STOCK)


def test_pipes_and_folders_are_not_read(tmp_path):
    os.mkfifo(tmp_path / 'a.png')
    (tmp_path / 'b.png').symlink_to('/dev/zero')
    (tmp_path / 'c.png').mkdir()
    assert [str(name) for _, name in find_images([tmp_path], tmp_path / 'out')] == [
        'a.png',
        'b.png',
    ]
    for name in ('a.png', 'b.png', 'c.png'):
        with pytest.raises(RefusedFile, match='pipe'):
            read_image(tmp_path / name, STOCK)


def test_an_image_is_read_as_opencv_does(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (7, 9, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / 'a.png')
    assert (read_image(tmp_path / 'a.png', STOCK)['img'] == pixels[..., ::-1]).all()


@pytest.mark.parametrize(
    ('image', 'seen'),
    [
        (np.uint8([[7, 9]]), [7, 9]),
        (np.uint8([[[7], [9]]]), [7, 9]),
        (np.float32([[7, 9]]), [7, 9]),  # what to_float32 makes of whole pixels
        (np.uint16([[0, 4095]]), [0, 255]),
        (np.float32([[-1, 0, 1, np.nan]]), [0, 127, 255, 127]),
        (np.zeros((1, 2, 5), np.int16), [0, 0]),
    ],
)
def test_any_image_can_be_drawn_on(image, seen):
    picture = viewable(image)
    assert picture.shape == (*image.shape[:2], 3)
    assert picture.dtype == np.uint8
    assert picture[0, :, 2].tolist() == seen


def test_its_own_pictures_are_no_inputs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('photos/a.png', 'photos/pictures/b.png'):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    found = lambda inputs, out: [str(name) for _, name in find_images(inputs, Path(out))]  # noqa: E731
    assert found(['photos'], 'out') == ['a.png', 'pictures/b.png']
    assert found([Path('photos').absolute()], 'photos') == ['a.png']
    assert found(['photos/pictures'], 'photos') == ['b.png']
