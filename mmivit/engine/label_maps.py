"""Label maps as files: those of predict.py, and of test.py ``--out``."""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.hooks import Hook
from mmengine.runner import Runner
from PIL import Image

from mmivit.errors import LaunchError
from mmivit.registry import HOOKS
from mmivit.utils.files import write_whole

MOST_CLASSES = 256  # that 8 bits tell apart


def label_map_png(labels: np.ndarray, palette: Sequence[Sequence[int]] | None) -> bytes:
    """A PNG whose pixel values are class indices.

    Args:
        labels: class of every pixel, (H, W) uint8.
        palette: red, green, blue of each class; None leaves it grey.
    """
    picture = Image.fromarray(labels)
    if palette is not None and len(palette):
        picture.putpalette(np.array(palette, np.uint8).tobytes())
    buffer = io.BytesIO()
    picture.save(buffer, 'PNG')
    return buffer.getvalue()


@HOOKS.register_module()
class LabelMapHook(Hook):
    """Writes what a segmentor predicts in a test, ``out/FOLDER/NAME.png``, as predict.py does.

    The folders are those of the images below the one that all have in common. Pixel values are
    class indices, also where the data set was read with ``reduce_zero_label``; mmseg's IoUMetric
    with ``output_dir`` adds 1 to them then.

    Args:
        out: folder to write.

    Raises:
        LaunchError: there are more classes than label maps of 8 bits hold.
    """

    def __init__(self, out: str) -> None:
        self.out = Path(out)

    def before_test(self, runner: Runner) -> None:
        dataset = runner.test_dataloader.dataset
        meta = getattr(dataset, 'metainfo', {})
        if len(meta.get('classes') or ()) > MOST_CLASSES:
            raise LaunchError(f'--out: label maps of 8 bits hold {MOST_CLASSES} classes at most')
        self.palette = meta.get('palette')
        paths = [_absolute(dataset.get_data_info(i)['img_path']) for i in range(len(dataset))]
        self.root = os.path.commonpath([path.parent for path in paths])
        count = Counter(path.with_suffix('') for path in paths)
        self.ambiguous = {path for path in paths if count[path.with_suffix('')] > 1}

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Sequence | None = None,
    ) -> None:
        for sample in outputs or ():
            path = _absolute(sample.img_path)
            name = f'{path.name if path in self.ambiguous else path.stem}.png'
            labels = sample.pred_sem_seg.data[0].cpu().numpy().astype(np.uint8)  # (H, W)
            target = self.out / path.parent.relative_to(self.root) / name
            write_whole(target, label_map_png(labels, self.palette))


def _absolute(path: str) -> Path:
    return Path(os.path.abspath(path))
