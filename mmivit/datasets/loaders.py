"""The transforms that load a data set's images and labels, found in a pipeline by their class."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmcv.transforms import BaseTransform, Compose, LoadAnnotations, LoadImageFromFile
from mmengine.dataset import BaseDataset
from mmengine.registry import TRANSFORMS, Registry

from mmivit.datasets.report import first_line
from mmivit.errors import LaunchError
from mmivit.registry import class_of


@dataclass(frozen=True)
class Loaders:
    """What a pipeline loads with, built.

    Args:
        image: adds 'img' to a sample.
        labels: adds boxes, masks or a label map; None where the pipeline asks for none.
        with_mask: whether a mask of each object is wanted.
    """

    image: BaseTransform
    labels: BaseTransform | None = None
    with_mask: bool = False


def find_loaders(pipeline: list[dict], scope: str | None) -> Loaders:
    """The loaders of a pipeline, mmcv's stock one for images if it is empty.

    A pipeline begins by loading the image, so its first step does where none is a kind of
    ``LoadImageFromFile``.

    Args:
        pipeline: as a config has it, transforms within transforms included.
        scope: of the config, in which its names are looked up.

    Raises:
        LaunchError: a loader cannot be built.
    """
    steps = [(step, class_of(TRANSFORMS, step, scope)) for step in _flatten(pipeline)]
    images = [step for step, kind in steps if issubclass(kind, LoadImageFromFile)]
    labels = [step for step, kind in steps if issubclass(kind, LoadAnnotations)]
    labels += [step for step, kind in steps if _is_named_as_labels(kind)]
    first = [step for step, _ in steps[:1] if step not in labels]
    image = (images + first + [dict(type='LoadImageFromFile')])[0]
    load_labels = build(TRANSFORMS, labels[0], scope) if labels else None
    with_mask = bool(getattr(load_labels, 'with_mask', False))
    return Loaders(build(TRANSFORMS, image, scope), load_labels, with_mask)


class ImagePipeline:
    """A test pipeline for images that have no labels: as it is, but for the steps that load labels.

    Args:
        pipeline: as a config has it.
        scope: of the config, in which its names are looked up.

    Attributes:
        loader: the step that loads the image: the first kind of ``LoadImageFromFile``, or else the
            first of all.

    Raises:
        LaunchError: it is empty, or a step cannot be built.
    """

    def __init__(self, pipeline: Sequence[dict], scope: str | None) -> None:
        kinds = [class_of(TRANSFORMS, step, scope) for step in pipeline]
        labels = [issubclass(k, LoadAnnotations) or _is_named_as_labels(k) for k in kinds]
        kinds = [kind for kind, is_label in zip(kinds, labels) if not is_label]
        nodes = [node for node, is_label in zip(pipeline, labels) if not is_label]
        if not nodes:
            raise LaunchError('test_dataloader.dataset.pipeline is empty: nothing loads an image')
        steps = [build(TRANSFORMS, node, scope) for node in nodes]
        loads = [issubclass(kind, LoadImageFromFile) for kind in kinds]
        place = loads.index(True) if any(loads) else 0
        self.loader = steps[place]
        self._load, self._prepare = Compose(steps[: place + 1]), Compose(steps[place + 1 :])

    def load(self, path: str | Path) -> dict | None:
        """The first half: a sample with ``img``, (height, width, ...) as its loader makes it."""
        return self._load(dict(img_path=str(path)))

    def __call__(self, sample: dict) -> dict:
        """The second half: what the model takes, of a sample that was loaded."""
        return self._prepare(dict(sample))


def decodes_as_stock(loader: BaseTransform) -> bool:
    """Does a loader decode image files as mmcv's own do, of formats that Pillow reads as well?"""
    if getattr(loader, 'imdecode_backend', None) == 'tifffile':
        return False
    if isinstance(loader, LoadImageFromFile):
        return type(loader).transform == LoadImageFromFile.transform
    kinds = [LoadAnnotations]
    for package in ('mmdet', 'mmseg'):  # imported where a loader of theirs has been built
        module = sys.modules.get(f'{package}.datasets.transforms')
        kinds += [module.LoadAnnotations] if module else []
    own = getattr(type(loader), '_load_seg_map', None)
    return any(own == kind._load_seg_map for kind in kinds)


def loading(loader: BaseTransform) -> str:
    """How a loader of images decodes them, as a config's step says it."""
    stock = dict(color_type='color', imdecode_backend='cv2')
    found = {name: getattr(loader, name, usual) for name, usual in stock.items()}
    options = [f'{name}={value!r}' for name, value in found.items() if value != stock[name]]
    return type(loader).__name__ + (f'({", ".join(options)})' if options else '')


def build(registry: Registry, node: dict, scope: str | None) -> BaseDataset | BaseTransform:
    """What a node of a config stands for.

    Raises:
        LaunchError: its constructor does not take what the config says.
    """
    try:
        return registry.build(dict(node, _scope_=scope))
    except Exception as error:  # whatever a constructor makes of the config's arguments
        raise LaunchError(f'{node.get("type")}: {first_line(error)}') from error


def _flatten(node: object) -> Iterator[dict]:
    """Every transform of a pipeline, each before those within it."""
    if isinstance(node, dict):
        if 'type' in node:
            yield node
        for value in node.values():
            yield from _flatten(value)
    elif isinstance(node, (list, tuple)):
        for item in node:
            yield from _flatten(item)


def _is_named_as_labels(kind: type) -> bool:
    """Loaders of one's own share no class with the stock ones, only the habit of their names."""
    empty = getattr(sys.modules.get('mmdet.datasets.transforms'), 'LoadEmptyAnnotations', ())
    return (
        kind.__name__.startswith('Load')
        and 'Annotation' in kind.__name__
        and not issubclass(kind, empty)
    )
