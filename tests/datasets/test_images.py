"""Images that may be decoded, and what Pillow and the pipeline's loader read."""

import cv2
import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile
from PIL import Image

from mmivit.datasets.images import MOST_PIXELS, check_image, look_at_image
from tests.apis.test_predict import SWOLLEN_PNG


def test_a_png_with_a_swollen_part_does_not_reach_the_loader(tmp_path):
    (tmp_path / 'a.png').write_bytes(SWOLLEN_PNG)
    picture = look_at_image(dict(img_path=str(tmp_path / 'a.png')), LoadImageFromFile())
    assert [finding.kind for finding in picture.found] == ['images truncated or corrupt']


def test_what_the_report_says_of_the_loader(tmp_path, monkeypatch):
    """mmcv's loader repeats grey, drops alpha, keeps the high byte and follows EXIF."""
    monkeypatch.chdir(tmp_path)
    load = LoadImageFromFile()
    grey = np.random.default_rng(0).integers(0, 256, (32, 40), np.uint8)
    Image.fromarray(grey).save('grey.png')
    Image.fromarray(np.dstack([grey] * 3 + [0 * grey]), 'RGBA').save('alpha.png')
    cv2.imwrite('deep.png', grey.astype(np.uint16) * 256 + 77)
    for name in ('grey.png', 'alpha.png', 'deep.png'):
        assert (load(dict(img_path=name))['img'] == grey[..., None]).all()
    image = Image.fromarray(np.dstack([grey] * 3))
    image.convert('CMYK').save('cmyk.tif')
    assert (load(dict(img_path='cmyk.tif'))['img'] == grey[..., None]).all()
    exif = image.getexif()
    exif[0x0112] = 6
    image.save('turned.jpg', exif=exif)
    assert load(dict(img_path='turned.jpg'))['img'].shape == (40, 32, 3)


@pytest.mark.parametrize('suffix', ['png', 'jpg', 'bmp', 'tif', 'webp', 'ppm', 'gif', 'jp2'])
def test_the_size_is_told(suffix, tmp_path):
    path = tmp_path / f'a.{suffix}'
    Image.new('RGB', (9, 5)).save(path)
    assert check_image(path) == (9, 5)


def test_more_pixels_than_fit_are_refused_by_the_header(tmp_path):
    header = b'P6 %d %d 255\n'
    (tmp_path / 'a.ppm').write_bytes(header % (MOST_PIXELS // 10 + 1, 10) + bytes(99))
    with pytest.warns(Image.DecompressionBombWarning), pytest.raises(Image.DecompressionBombError):
        check_image(tmp_path / 'a.ppm')


def test_formats_for_which_pillow_starts_a_program_are_not_read(tmp_path):
    (tmp_path / 'a.eps').write_bytes(b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n')
    with pytest.raises(Image.UnidentifiedImageError):
        check_image(tmp_path / 'a.eps')


def test_a_damaged_png_is_refused(tmp_path):
    Image.new('RGB', (9, 5)).save(tmp_path / 'a.png')
    data = bytearray((tmp_path / 'a.png').read_bytes())
    data[data.index(b'IDAT') + 6] ^= 1
    (tmp_path / 'a.png').write_bytes(data)
    with pytest.raises((SyntaxError, OSError)):
        check_image(tmp_path / 'a.png')
