"""What in a COCO file would end or spoil a run, in one line each, told before it starts.

Images are not looked at: that is what ``tools/check_data.py`` is for.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmivit.datasets.coco_file import BOXES_ALONE, CocoFile
from mmivit.datasets.evaluators import SPOILING, evaluator_findings
from mmivit.datasets.report import Finding
from mmivit.errors import LaunchError
from mmivit.utils.text import listed


def check_class_names(file: CocoFile, classes: Sequence[str], evaluated: bool) -> list[str]:
    """Check that a file's categories are the classes of a config.

    Args:
        file: of a data set or an evaluator.
        classes: of the config.
        evaluated: whether predictions of any class are looked up among the categories.

    Returns:
        A warning, where the last classes are missing and labels are right nevertheless.

    Raises:
        LaunchError: labels would stand for other classes, or for none.
    """
    if isinstance(classes, str):
        raise LaunchError(f"classes={classes!r} is one text, not a list: write ('{classes}',)")
    labels = file.labels(classes)
    missing = [name for name in classes if name not in labels]
    if not missing:
        return []
    text = (
        f'{file.path} has the categories {listed([entry["name"] for entry in file.categories])}; '
        f'the classes of the config are {listed(classes)}; no category is named {listed(missing)}'
    )
    if evaluated or not labels or labels != list(classes[: len(labels)]):
        raise LaunchError(f"{text}. Rename either; a data set's are metainfo=dict(classes=...).")
    return [f'{text}: never learnt.']


def check_numbering(train: CocoFile, other: CocoFile, classes: Sequence[str]) -> None:
    """Check that two files' labels stand for the same classes.

    Raises:
        LaunchError: ``CocoDataset`` would number them in each file's own order.
    """
    ours, theirs = train.labels(classes), other.labels(classes)
    if any(one != two for one, two in zip(ours, theirs)):
        raise LaunchError(
            f'{train.path} has its categories in the order {listed(ours)}, {other.path} in the '
            f'order {listed(theirs)}: CocoDataset numbers labels by it. Give both the same order.'
        )


def check_masks(file: CocoFile, classes: Sequence[str], who: str) -> None:
    """Check that every object has the mask that somebody wants.

    Args:
        file: of a data set or an evaluator.
        classes: of the config.
        who: wants it.

    Raises:
        LaunchError: some have none; says the two ways on.
    """
    objects = file.objects(classes)
    bare = [item['id'] for item in objects if not item.get('segmentation')]
    if bare:
        raise LaunchError(
            f'{who} wants masks, but {len(bare)} of {len(objects)} objects in {file.path} have '
            f"none (annotation {bare[0]}). Either give each a 'segmentation', or train on boxes "
            f'alone: configs/faster_rcnn_ivit.py, for data of your own {BOXES_ALONE}'
        )


def check_evaluated(file: CocoFile, loaded: Sequence[CocoFile]) -> list[str]:
    """Check the file of an evaluator.

    Args:
        file: the evaluator's.
        loaded: those of the data sets that it judges; empty if they are not all known.

    Returns:
        Warnings of what makes the score another one than it should be.

    Raises:
        LaunchError: evaluation would fail, or compare different images.
    """
    kinds: dict[str, list[Finding]] = {}
    for finding in evaluator_findings(file, loaded):
        kinds.setdefault(finding.kind, []).append(finding)
    warnings = []
    for kind, found in kinds.items():
        text = f'the evaluator reads {len(found)} {kind} ({found[0].where})'
        if kind not in SPOILING:
            raise LaunchError(text)
        warnings.append(text)
    return warnings
