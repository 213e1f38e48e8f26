"""Images that may be decoded, and those that may not."""

import pytest
from PIL import Image

from mmivit.datasets.vetting import MOST_PIXELS, check_image


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
