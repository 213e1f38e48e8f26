"""Images as Pillow and the pipeline's loader read them."""

import cv2
import numpy as np
from mmcv.transforms import LoadImageFromFile
from PIL import Image

from mmivit.datasets.images import look_at_image
from tests.apis.test_images import SWOLLEN_PNG


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
