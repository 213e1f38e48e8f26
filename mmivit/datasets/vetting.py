"""Looking at strangers' images before OpenCV decodes them, with Pillow, which reads the header."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

MOST_PIXELS = 89_478_485  # where Pillow warns of a decompression bomb; 256 MiB decoded
# Those that OpenCV reads too; for others Pillow may even start a program.
IMAGE_FORMATS = ('JPEG', 'PNG', 'BMP', 'TIFF', 'WEBP', 'PPM', 'GIF', 'JPEG2000', 'SUN')

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp', '.ppm')
# Of images and videos as well, which the stock loaders don't read, or not all of them.
OTHER_SUFFIXES = ('.gif', '.heic', '.heif', '.avif', '.jxl', '.jp2', '.svg', '.dng', '.mts')


def check_image(path: str | Path) -> tuple[int, int]:
    """Width and height of an image that may be decoded, by its header and a PNG's parts.

    Raises:
        PIL.Image.DecompressionBombError: it has more than MOST_PIXELS.
        Exception: of nearly any kind, it is damaged or no image.
    """
    with Image.open(path, formats=IMAGE_FORMATS) as image:
        if image.width * image.height > MOST_PIXELS:
            raise Image.DecompressionBombError(f'{image.width} x {image.height}')
        # OpenCV takes as much memory as a broken PNG says that its next part is long.
        image.verify()
        return image.size
