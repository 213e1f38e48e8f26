"""Images of folders within folders, without annotations: what models are distilled and judged on.

Transforms of torchvision's second version are known as ``torchvision/NAME`` once this is imported,
as in mmpretrain; they take what ``torchvision/ToImage`` makes of the array of mmcv's loaders.
"""

from __future__ import annotations

import inspect
import logging
import os
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log
from mmengine.registry import TRANSFORMS
from mmengine.structures import BaseDataElement
from torchvision.transforms import v2

from mmivit.datasets.images import look_at_all, look_at_image
from mmivit.datasets.loaders import Loaders, decodes_as_stock
from mmivit.datasets.report import DataReport, Finding, first_line
from mmivit.datasets.vetting import IMAGE_SUFFIXES, check_image
from mmivit.errors import LaunchError
from mmivit.registry import DATASETS
from mmivit.utils.files import is_apple_double
from mmivit.utils.text import printable

MOST_IN_A_ROW = 1000  # unreadable images that are passed over before giving up
TRIED = 16  # images that are read before a run starts

for _name, _kind in inspect.getmembers(v2, inspect.isclass):
    if issubclass(_kind, v2.Transform):
        TRANSFORMS.register_module(name=f'torchvision/{_name}', module=_kind, force=True)


@DATASETS.register_module()
class ImageFolder(BaseDataset):
    """The images of a folder and of those within it, at any depth, in the order of their paths.

    An image that cannot be read is named in the log, and the next one takes its place.

    Args:
        data_root: the folder, or where ``data_prefix['img_path']`` begins.
        pipeline: transforms, of which the first loads the image and the others take the sample
            with the image under 'img', (C, H, W) at last.
        labelled: whether the folders within the first one are classes, numbered by the order of
            their names.
        further arguments as in MMEngine's ``BaseDataset``, without ``ann_file``.

    Raises:
        LaunchError: there is no such folder, or no image in it; or, of classes, an image beside
            their folders.
    """

    def __init__(self, data_root: str = '', labelled: bool = False, **options: Any) -> None:
        self.labelled = labelled
        self._unreadable: set[str] = set()
        super().__init__(data_root=data_root, **options)

    def load_data_list(self) -> list[dict]:
        """The images' paths and, of classes, labels."""
        root = Path(self.data_prefix['img_path'] or '.')
        found = sorted(
            os.path.join(folder, name)
            for folder, _, names in os.walk(root, followlinks=True)
            for name in names
            if name.lower().endswith(IMAGE_SUFFIXES) and not is_apple_double(name)
        )
        if not found:
            raise LaunchError(
                f'{root if root.is_dir() else f"no folder {root}"}, seen from {os.getcwd()}, holds '
                f'no image; looked at any depth for {", ".join(IMAGE_SUFFIXES)}'
            )
        if not self.labelled:
            return [dict(img_path=path) for path in found]
        parts = [Path(path).relative_to(root).parts for path in found]
        beside = [path for path, own in zip(found, parts) if len(own) < 2]
        if beside:
            raise LaunchError(
                f'labelled=True takes the folders in {root} for classes; {len(beside)} images are '
                f'in none: {printable(beside[0])}'
            )
        classes = sorted({own[0] for own in parts})
        self._metainfo.setdefault('classes', tuple(classes))
        numbers = {name: number for number, name in enumerate(classes)}
        return [dict(img_path=path, label=numbers[own[0]]) for path, own in zip(found, parts)]

    def __getitem__(self, index: int) -> dict:
        """The image of an index, or the next one that can be read, ready for a model.

        Returns:
            ``inputs``, the image (C, H, W), and ``data_samples``, its path and any label.

        Raises:
            LaunchError: none of very many can be read.
        """
        for _ in range(min(len(self), MOST_IN_A_ROW)):
            sample = self.prepare_data(index)
            if sample is not None:
                return sample
            index = (index + 1) % len(self)
        raise LaunchError(f'{self.data_prefix["img_path"]}: no image there can be read')

    def prepare_data(self, index: int) -> dict | None:
        """The same, None of an image that cannot be read."""
        sample = self.get_data_info(index)
        path = sample['img_path']
        load, *steps = self.pipeline.transforms
        try:
            if decodes_as_stock(load):
                with warnings.catch_warnings():
                    warnings.simplefilter('ignore')  # about sizes that are refused
                    check_image(path)
            results = load(dict(sample))
        except Exception as error:  # broken files make readers raise almost anything
            self._tell(path, error)
            return None
        for step in steps:
            results = step(results)
        data_sample = BaseDataElement(metainfo=dict(img_path=path))
        if 'label' in sample:
            data_sample.label = sample['label']
        image = torch.as_tensor(results['img']).as_subclass(torch.Tensor)
        return dict(inputs=image, data_samples=data_sample)

    def _tell(self, path: str, error: Exception) -> None:
        if path not in self._unreadable:
            self._unreadable.add(path)
            text = (
                f'{printable(path)} cannot be read ({printable(first_line(error))}): the next one '
                f'takes its place. So far {len(self._unreadable)} of {len(self)}, by this process; '
                'python tools/check_data.py CONFIG names all'
            )
            print_log(text, logger='current', level=logging.WARNING)


def check_readable(dataset: ImageFolder) -> None:
    """Read some of a folder's images, from all over it.

    Raises:
        LaunchError: none of them can be read.
    """
    dataset.full_init()
    count = min(TRIED, len(dataset))
    if all(dataset.prepare_data(i * len(dataset) // count) is None for i in range(count)):
        raise LaunchError(
            f'{dataset.data_prefix["img_path"]}: none of {count} images that were tried, of '
            f'{len(dataset)}, can be read'
        )


def check_images(report: DataReport, dataset: ImageFolder, loaders: Loaders) -> set[str]:
    """Report on the images of a folder; the classes there are.

    The arguments are those of every check; see :mod:`mmivit.datasets.checks`.
    """
    try:
        dataset.full_init()
    except LaunchError as error:
        report.add([Finding('folders without images', str(error))])
        return set()
    samples = [dataset.get_data_info(index) for index in range(len(dataset))]
    for _ in look_at_all(partial(look_at_image, load_image=loaders.image), samples, report):
        pass
    return set(dataset.metainfo.get('classes') or ())
