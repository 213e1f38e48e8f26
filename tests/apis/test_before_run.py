"""What train.py and test.py say of a COCO file before a run."""

import json

import pytest
from mmengine.config import Config

from mmivit.apis.check_data import check_before_run
from mmivit.apis.test import evaluate
from mmivit.apis.train import train
from mmivit.errors import LaunchError
from tests.faulty_data import (
    BOXES,
    COCO,
    DETECTION,
    SEGMENTATION,
    VALIDATION,
    edit,
)


def before_run(splits=('train', 'val'), **options):
    cfg = Config.fromfile(DETECTION)
    cfg.merge_from_dict(options)
    return check_before_run(cfg, splits)


def test_sound_sets_start_without_a_word(workspace, monkeypatch):
    assert before_run() == before_run(['test']) == []
    assert check_before_run(Config.fromfile(SEGMENTATION), ['train', 'val']) == []
    assert before_run(**{'train_dataloader.dataset.ann_file': 'nowhere.json'}) == []  # told before
    # A test set without annotations, of which only results are written.
    edit(workspace / VALIDATION, lambda content: content.pop('annotations'))
    assert before_run(['test']) == []


@pytest.mark.parametrize('split', ['train', 'val'])
def test_class_names_that_differ_from_the_files_end_a_run_in_one_line(workspace, split):
    path = workspace / (COCO if split == 'train' else VALIDATION)

    def change(content):
        content['categories'][0]['name'] = 'Circle'

    edit(path, change)
    with pytest.raises(LaunchError) as error:
        before_run()
    text = str(error.value)
    assert text.startswith(f'{split} data: ')
    assert 'categories Circle, square, triangle, star, cross;' in text
    assert 'config are circle, square, triangle, star, cross; no category is named circle' in text
    assert len(text.splitlines()) == 1


def test_none_of_the_class_names(workspace):
    metainfo = dict(classes=('cat', 'dog'), palette=[(1, 2, 3), (4, 5, 6)])
    options = {f'{split}_dataloader.dataset.metainfo': metainfo for split in ('train', 'val')}
    with pytest.raises(LaunchError, match='no category is named cat, dog'):
        before_run(**options)
    with pytest.raises(LaunchError, match='one text'):
        before_run(**{'train_dataloader.dataset.metainfo.classes': 'circle'})


def test_last_classes_without_a_category_are_a_warning_in_training_alone(workspace):
    edit(workspace / COCO, lambda content: content['categories'].pop())
    (warning,) = before_run()
    assert warning.endswith('no category is named cross: never learnt.')
    edit(workspace / VALIDATION, lambda content: content['categories'].pop())
    with pytest.raises(LaunchError, match='val data'):
        before_run()


def test_files_that_number_labels_differently(workspace):
    edit(workspace / VALIDATION, lambda content: content['categories'].reverse())
    with pytest.raises(LaunchError, match=r'val data: .*order circle, .*order cross, star'):
        before_run()
    assert before_run(['test']) == []


def test_masks_that_are_wanted_and_not_there(workspace):
    def change(content):
        for annotation in content['annotations']:
            annotation['segmentation'] = []

    edit(workspace / COCO, change)
    with pytest.raises(
        LaunchError, match=r'train pipeline wants masks.*Either .* or train on boxes'
    ):
        before_run()
    boxes = {'train_dataloader.dataset.pipeline': BOXES}
    assert before_run(**boxes) == []
    edit(workspace / VALIDATION, change)
    boxes['val_dataloader.dataset.pipeline'] = BOXES
    with pytest.raises(LaunchError, match='val evaluator wants masks'):
        before_run(**boxes)
    boxes['val_evaluator.metric'] = 'bbox'
    assert before_run(**boxes) == []


def test_an_evaluators_file_before_a_run(workspace):
    def from_zero(content):
        for annotation in content['annotations']:
            annotation['id'] -= 1

    loader = {'val_dataloader.dataset.ann_file': 'annotations/instances_training.json'}
    with pytest.raises(LaunchError, match=r"val data: .* evaluator's file does not"):
        before_run(**loader)
    (warning,) = before_run(val_evaluator=dict(ann_file=COCO))
    assert 'their objects count as missed' in warning
    edit(workspace / VALIDATION, from_zero)
    (warning,) = before_run(['test'])
    assert 'reads 1 annotations with id 0' in warning
    edit(workspace / VALIDATION, lambda c: c['annotations'][3].pop('iscrowd'))
    with pytest.raises(LaunchError, match="without 'iscrowd'"):
        before_run(['test'])
    assert before_run(['test'], test_evaluator=dict(ann_file=None)) == []


def test_an_unlabelled_part_needs_no_categories_of_the_config(workspace):
    cfg = Config.fromfile(DETECTION)
    labelled = dict(cfg.train_dataloader.dataset)
    steps = [dict(type='LoadImageFromFile'), dict(type='LoadEmptyAnnotations')]
    unlabelled = dict(labelled, ann_file='bare.json', pipeline=steps)
    cfg.train_dataloader.dataset = dict(type='ConcatDataset', datasets=[labelled, unlabelled])
    bare = dict(images=json.loads((workspace / COCO).read_text())['images'], categories=[])
    (workspace / 'data/shapes/bare.json').write_text(json.dumps(bare))
    assert check_before_run(cfg, ['train', 'val']) == []


def test_train_and_test_ask_before_anything_is_built(workspace):
    edit(workspace / COCO, lambda content: content['categories'].clear())
    with pytest.raises(LaunchError, match=r'train data: .*no category'):
        train(str(DETECTION))
    edit(workspace / VALIDATION, lambda content: content['categories'].clear())
    with pytest.raises(LaunchError, match=r'test data: .*no category'):
        evaluate(str(DETECTION), 'nowhere.pth')
