"""What evaluators that read a COCO file make of it."""

import copy

import numpy as np
import pytest
from mmdet.evaluation import CocoMetric, LVISMetric
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mmivit.datasets.coco_file import CocoFile
from mmivit.datasets.evaluators import (
    ID_ZERO,
    NO_ISCROWD,
    NOT_LOADED,
    OTHER_IMAGE,
    UNKNOWN_IMAGE,
    evaluator_findings,
    reads_coco_file,
    wants_masks,
)

IMAGES = [dict(id=i, file_name=f'{i}.jpg', width=100, height=100) for i in range(4)]
CATEGORIES = [dict(id=1, name='cat')]


def annotations(first):
    return [
        dict(id=first + i, image_id=i, category_id=1, bbox=[9, 9, 40, 40], area=1600, iscrowd=0)
        for i in range(4)
    ]


def average_precision(truth):
    """AP50 of perfect boxes."""
    coco, perfect = COCO(), COCO()
    coco.dataset = dict(images=IMAGES, categories=CATEGORIES, annotations=truth)
    perfect.dataset = copy.deepcopy(coco.dataset)
    for number, item in enumerate(perfect.dataset['annotations'], 1):
        item.update(id=number, score=1.0)
    coco.createIndex()
    perfect.createIndex()
    evaluation = COCOeval(coco, perfect, 'bbox')
    evaluation.params.iouThrs = np.array([0.5])
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation.eval['precision'][0, :, 0, 0, -1].mean()


def kinds(truth, loaded=()):
    file = CocoFile('a.json', IMAGES, CATEGORIES, truth)
    return [finding.kind for finding in evaluator_findings(file, loaded)]


def test_perfect_boxes_score_one_where_ids_begin_with_one_and_the_check_is_silent():
    assert average_precision(annotations(1)) == 1
    assert kinds(annotations(1)) == []
    assert average_precision(annotations(0)) < 0.9
    assert kinds(annotations(0)) == [ID_ZERO]


def test_evaluation_fails_without_iscrowd_and_the_check_says_so():
    truth = annotations(1)
    del truth[2]['iscrowd']
    with pytest.raises(KeyError, match='iscrowd'):
        average_precision(truth)
    assert kinds(truth) == [NO_ISCROWD]


def test_images_are_compared_by_id_and_name():
    def loaded(*names):
        images = [dict(IMAGES[0], id=i, file_name=name) for i, name in enumerate(names)]
        return [CocoFile('b.json', images, CATEGORIES, [])]

    same = ('0.jpg', 'folder/1.jpg', '2.jpg', '3.jpg')
    assert kinds(annotations(1), loaded(*same)) == []
    assert kinds(annotations(1), loaded(*same, '4.jpg')) == [UNKNOWN_IMAGE]
    assert kinds(annotations(1), loaded('other.jpg', *same[1:])) == [OTHER_IMAGE]
    assert kinds(annotations(1), loaded(*same[:3])) == [NOT_LOADED]


class OwnNames(CocoMetric):
    """Evaluates as mmdet's."""


def test_evaluators_by_class():
    for kind in ('CocoMetric', CocoMetric, OwnNames):
        assert reads_coco_file(dict(type=kind, ann_file='a.json'), 'mmdet')
    for other in (
        dict(type=LVISMetric, ann_file='a.json'),
        dict(type='CocoMetric'),
        dict(type='CocoMetric', ann_file='s3://bucket/a.json'),
        dict(type='NoSuchMetric', ann_file='a.json'),
    ):
        assert not reads_coco_file(other, 'mmdet')
    assert wants_masks(dict(metric=['bbox', 'segm']))
    assert wants_masks(dict(metric='segm'))
    assert not wants_masks(dict())
