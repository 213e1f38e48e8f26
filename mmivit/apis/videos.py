"""Videos to predict on, whoever made them, and videos of what was predicted."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import mmcv
import numpy as np

from mmivit.datasets.loaders import ImagePipeline, decodes_as_stock, loading
from mmivit.datasets.vetting import MOST_PIXELS
from mmivit.utils.files import RefusedFile, check_regular, whole

VIDEO_SUFFIXES = ('.mp4', '.m4v', '.mov', '.avi', '.mkv', '.webm', '.mpg', '.mpeg', '.wmv')
# How the files of these begin. FFmpeg looks at the content alone, and plays lists of files and
# addresses as well, whatever their names.
BEGINNINGS = re.compile(
    rb'.{4}(ftyp|moov|mdat|wide|free|skip)|RIFF.{4}AVI |\x1aE\xdf\xa3|\0\0\1[\xb3\xba]'
    rb'|\x30\x26\xb2\x75\x8e\x66\xcf\x11',
    re.DOTALL,
)
# FFmpeg is silent, which reads this at its first use: what is wrong is told in a line.
os.environ.setdefault('OPENCV_FFMPEG_LOGLEVEL', '-8')
USUAL_RATE = 25.0  # frames a second, where a video does not say it
CODEC = 'mp4v'  # the one for MP4 that OpenCV's packages bring along on every system


class Video:
    """A video's frames in their order.

    Attributes:
        rate: frames a second.
        announced: how many frames its header says, which need not be right.
        size: width and height, pixels.

    Raises:
        RefusedFile: it is no video that can be read, or its frames are too large to decode.
        OSError: there is no such file, or it may not be read.
    """

    def __init__(self, path: Path) -> None:
        check_regular(path)
        with open(path, 'rb') as file:
            if not BEGINNINGS.match(file.read(512)):
                raise RefusedFile('not a video that can be read')
        self._reader = mmcv.VideoReader(str(path))
        if not self._reader.opened:
            raise RefusedFile('a video damaged in its header, or of a kind that OpenCV cannot read')
        self.size = self._reader.resolution
        if self.size[0] * self.size[1] > MOST_PIXELS:
            raise RefusedFile(f'frames of more than {MOST_PIXELS // 10**6} megapixels')
        rate = self._reader.fps
        self.rate = rate if 0 < rate < 1000 else USUAL_RATE
        self.announced = max(self._reader.frame_cnt, 0)

    def __iter__(self) -> Iterator[np.ndarray]:
        """(H, W, 3) uint8, BGR."""
        # mmcv's own read() seeks where the container numbers its frames otherwise.
        while (decoded := self._reader.vcap.read())[0]:
            yield decoded[1]
        self._reader.vcap.release()


def as_loaded(frame: np.ndarray, pipeline: ImagePipeline) -> dict:
    """A frame as a sample of a config's pipeline, as its loader would make it of a picture.

    Args:
        frame: (H, W, 3) uint8, BGR.
        pipeline: the config's.

    Raises:
        RefusedFile: its loader reads something else than pictures.
    """
    loader = pipeline.loader
    if not decodes_as_stock(loader):
        raise RefusedFile(f'images are loaded by {loading(loader)} here, which reads no frames')
    if str(getattr(loader, 'color_type', 'color')).startswith('gray'):
        frame = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)
    if getattr(loader, 'to_float32', False):
        frame = frame.astype(np.float32)
    return dict(img=frame, img_shape=frame.shape[:2], ori_shape=frame.shape[:2])


class VideoWriter:
    """Pictures as the frames of an MP4; those after the first are fitted to its size."""

    def __init__(self, path: Path, rate: float) -> None:
        self._path, self._rate = path, rate
        self._writer: cv2.VideoWriter | None = None

    def write(self, picture: np.ndarray) -> None:
        """Add a picture, (H, W, 3) uint8, RGB.

        Raises:
            OSError: the file cannot be written.
        """
        if self._writer is None:
            self._size = picture.shape[0] // 2 * 2, picture.shape[1] // 2 * 2  # as codecs want
            code = cv2.VideoWriter_fourcc(*CODEC)
            self._writer = cv2.VideoWriter(str(self._path), code, self._rate, self._size[::-1])
            if not self._writer.isOpened():
                raise OSError(f'OpenCV cannot write a video of {self._size[1]} x {self._size[0]}')
        height, width = self._size
        fitted = np.full((height, width, 3), 255, np.uint8)
        part = picture[:height, :width]
        fitted[: part.shape[0], : part.shape[1]] = part
        self._writer.write(mmcv.rgb2bgr(fitted))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.release()


@contextmanager
def written_video(path: Path, rate: float) -> Iterator[VideoWriter]:
    """A video to be written, whole or not at all.

    Args:
        path: of the file, an MP4.
        rate: frames a second.
    """
    with whole(path) as partial, TemporaryDirectory(dir=path.parent, prefix='.') as folder:
        writer = VideoWriter(Path(folder, 'video.mp4'), rate)  # FFmpeg goes by the suffix
        try:
            yield writer
        finally:
            writer.close()
        Path(folder, 'video.mp4').replace(partial)
