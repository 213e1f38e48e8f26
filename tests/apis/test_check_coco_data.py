"""Faults of COCO files and of evaluators that read them, found by check_data."""

import json

import numpy as np
import pytest
from mmengine.config import Config
from pycocotools import mask as rle

from mmivit.apis.check_data import check_datasets
from mmivit.datasets.coco_file import unpack_runs
from mmivit.errors import LaunchError
from tests.faulty_data import (
    BOXES,
    COCO,
    DETECTION,
    TRAIN,
    VALIDATION,
    check,
    edit,
    found,
    rename,
)


def test_a_sound_coco_file_with_polygons_and_plain_run_lengths(workspace):
    def change(content):
        for annotation in content['annotations'][::2]:
            x, y, w, h = annotation['bbox']
            annotation['segmentation'] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        packed = content['annotations'][1]['segmentation']
        packed['counts'] = unpack_runs(packed['counts'])

    edit(workspace / COCO, change)
    assert not check(DETECTION).problems


def test_annotations(workspace):
    def change(content):
        entries = content['annotations']
        broken = iter(entries)

        def take(**values):
            entry = next(broken)
            entry.update(values)
            return entry['id']

        short = entries[7]['segmentation']['counts'][:-2]
        small = rle.encode(np.ones((8, 8), np.uint8, order='F'))['counts'].decode()
        nothing = rle.encode(np.zeros((32, 32), np.uint8, order='F'))['counts'].decode()
        x = entries[0]['bbox']
        box = dict(bbox=[4, 4, 8, 8])
        expected.update(
            {
                'an unknown category': [take(category_id=99)],
                'an unknown image': [take(image_id=99)],
                'zero or negative size': [
                    take(bbox=[*x[:2], 0, 5]),
                    take(bbox=[*x[:2], 5, -3]),
                ],
                'boxes reaching outside': [
                    take(bbox=[-9, 0, 12, 12]),
                    take(bbox=[20, 20, 20, 4]),
                ],
                'of no area': [take(**box, area=0)],
                'run-length masks that are broken': [
                    take(segmentation=dict(size=[32, 32], counts=short)),
                    take(segmentation=dict(size=[32, 32], counts='\x00é')),
                    take(segmentation=dict(size=[32, 32], counts='o' * 10**5)),
                    take(segmentation=dict(size=[32, 32], counts=[1, -1, 1024])),
                    take(segmentation=dict(size=[32, 32], counts=None)),
                ],
                'run-length masks of another size': [
                    take(segmentation=dict(size=[8, 8], counts=small)),
                    take(segmentation=dict(size=[10**9, 10**9], counts=small)),
                ],
                'run-length masks without a pixel': [
                    take(segmentation=dict(size=[32, 32], counts=nothing))
                ],
                'without the mask': [take(segmentation=[])],
                'three points or more': [
                    take(segmentation=[[]]),
                    take(segmentation=[[1, 2, 3, 4]]),
                    take(segmentation=[[1, 2, 3, 4, 5, 6, 7]]),
                    take(segmentation=[[1, 2, 3, 4, 5, 'six']]),
                ],
                'polygons without area': [take(segmentation=[[1, 1, 5, 5, 9, 9]])],
                'polygons reaching outside': [take(segmentation=[[1, 1, 1e8, 1, 9, 9]])],
                'neither polygons nor run lengths': [take(segmentation='mask')],
                'boxes under a pixel': [take(bbox=[4, 4, 0.5, 3])],
            }
        )

    expected = {}
    edit(workspace / COCO, change)
    report = check(DETECTION)
    for kind, ids in expected.items():
        count, where = found(report, kind)
        assert count == len(ids), kind
        assert all(f'annotation {number}' in where for number in ids[:3])
    assert sum(report.problems.values()) == sum(map(len, expected.values())) - 1
    assert sum(report.notes.values()) == 1


def test_what_does_not_reach_training_is_counted(workspace):
    def mark(flag, chosen):
        def change(content):
            for annotation in content['annotations']:
                annotation[flag] = int(chosen(annotation))

        edit(workspace / COCO, change)
        return check(DETECTION)

    def clear(content):
        for annotation in content['annotations']:
            annotation['iscrowd'] = annotation['ignore'] = 0

    total = len(json.loads((workspace / COCO).read_text())['annotations'])
    sound = check(DETECTION)
    everything = f'{total} of {total} objects and 16 of 16 images reach training'
    assert sound.facts == [everything]
    assert everything in str(sound)
    assert not sound.notes
    for flag in ('iscrowd', 'ignore'):
        report = mark(flag, lambda annotation: True)
        assert report.facts == [f'0 of {total} objects and 16 of 16 images reach training']
        count, where = found(report, 'most of whose objects')
        assert (count, where) == (1, f"0 of {total} do: {total} marked '{flag}'")
        assert found(report, 'none of whose objects')[0] == 5
        assert sum(report.problems.values()) == 6
        report = mark(flag, lambda annotation: annotation['id'] == 3)
        assert not report.problems
        assert found(report, f"do not reach training: marked '{flag}'")[0] == 1
        report = mark(flag, lambda annotation: annotation['category_id'] == 2)
        assert found(report, 'none of whose objects')[1].startswith('square: ')
        edit(workspace / COCO, clear)
    report = check(DETECTION, **{'train_dataloader.dataset.filter_cfg.min_size': 33})
    assert report.facts == [f'0 of {total} objects and 0 of 16 images reach training']
    assert found(report, 'in images that filter_cfg leaves out')[0] == total
    assert found(report, 'most of whose objects')[0] == 1
    # Classes that the config leaves out on purpose don't vanish.
    report = check(DETECTION, **{'train_dataloader.dataset.metainfo.classes': ['star']})
    assert not report.problems


def test_what_evaluation_passes_over_is_counted(workspace):
    def crowd(share):
        def change(content):
            for number, annotation in enumerate(content['annotations']):
                annotation['iscrowd'] = int(number < share * len(content['annotations']))

        edit(workspace / COCO.replace('training', 'validation'), change)
        return check(DETECTION, ['val'])

    assert 'objects are evaluated' in crowd(0).facts[0]
    assert sum(crowd(0.3).problems.values()) == 0
    assert 'passes over' in str(crowd(0.3).notes)
    assert 'passes over' in str(crowd(0.9).problems)


def test_one_file_under_two_image_ids(workspace):
    def change(content):
        (*_, last) = content['images']
        copy = dict(last, id=99, file_name=f'./{last["file_name"]}')
        content['images'].append(copy)
        mine = [a for a in content['annotations'] if a['image_id'] == last['id']]
        mine[0]['image_id'] = 99

    edit(workspace / COCO, change)
    report = check(DETECTION)
    assert found(report, 'more than one image id') == (1, '000015.jpg: ids 15, 99')
    assert sum(report.problems.values()) == 1


def test_ids_from_zero_and_annotations_without_iscrowd(workspace):
    def change(content):
        for annotation in content['annotations']:
            annotation['id'] -= 1
        for annotation in content['annotations'][1:3]:
            del annotation['iscrowd']

    edit(workspace / VALIDATION, change)
    edit(workspace / COCO, change)
    report = check(DETECTION, ['val'])
    assert found(report, 'with id 0')[0] == 1
    assert found(report, "without 'iscrowd'")[0] == 2
    assert sum(report.problems.values()) == 3
    assert not check(DETECTION).problems  # nothing is evaluated with it
    # An evaluator that makes its file from the data set numbers from 1.
    assert not check(DETECTION, ['val'], val_evaluator=dict(ann_file=None)).problems


def test_evaluators_with_a_file_that_is_not_the_loaders(workspace):
    with pytest.raises(LaunchError, match=r'val_evaluator\.ann_file: no file data/shapesannot'):
        check(DETECTION, ['val'], val_evaluator=dict(ann_file='data/shapesannotations/val.json'))
    other = workspace / 'other.json'
    # The training images have the ids of the validation images too, and more of them.
    other.write_bytes((workspace / COCO).read_bytes())
    rename(other, lambda name: f'other/{name}')
    edit(
        workspace / VALIDATION,
        lambda c: [i.update(file_name=f'my/{i["file_name"]}') for i in c['images']],
    )
    report = check(DETECTION, ['val'], val_evaluator=dict(ann_file='other.json'))
    assert found(report, 'others in the evaluator')[0] == 2
    assert 'is other/000000.jpg, loaded is my/000000.jpg' in found(report, 'others in')[1]
    assert found(report, 'not loaded')[0] == TRAIN - 2
    edit(other, lambda content: content['images'].pop(1))
    report = check(DETECTION, ['val'], val_evaluator=dict(ann_file='other.json'))
    assert 'has no image 1 (my/000001.jpg)' in found(report, 'does not have')[1]


def test_an_evaluator_may_read_another_file_of_the_same_images(workspace):
    other = workspace / 'other.json'
    other.write_bytes((workspace / VALIDATION).read_bytes())
    edit(
        other,
        lambda c: [i.update(file_name=f'images/validation/{i["file_name"]}') for i in c['images']],
    )
    assert not check(DETECTION, ['val'], val_evaluator=dict(ann_file=str(other))).problems


def test_a_metric_for_each_data_set(workspace):
    cfg = Config.fromfile(DETECTION)
    part = dict(cfg.val_dataloader.dataset)
    train = dict(
        part,
        ann_file=cfg.train_dataloader.dataset.ann_file,
        data_prefix=dict(img='images/training/'),
    )
    cfg.val_dataloader.dataset = dict(type='ConcatDataset', datasets=[part, train])
    metrics = [dict(type='CocoMetric', ann_file=path) for path in (VALIDATION, COCO)]
    cfg.val_evaluator = dict(
        type='MultiDatasetsEvaluator', metrics=metrics, dataset_prefixes=['a', 'b']
    )
    cfg.dump('several.py')
    assert not any(report.problems for report in check_datasets('several.py'))
    cfg.val_evaluator.metrics = metrics[::-1]
    cfg.dump('several.py')
    reports = check_datasets('several.py', ['val'])
    assert found(reports[0], 'not loaded')[0] == TRAIN - 2
    assert found(reports[1], 'does not have')[0] == TRAIN - 2


def test_masks_are_asked_for_where_they_are_used(workspace):
    def change(content):
        shapes = ([], [[]], [[1, 2, 9, 9]], None)
        for annotation, shape in zip(content['annotations'], shapes):
            annotation['segmentation'] = shape
        for annotation in content['annotations'][len(shapes) :]:
            del annotation['segmentation']

    for path in (COCO, VALIDATION):
        edit(workspace / path, change)
    assert not check(DETECTION, **{'train_dataloader.dataset.pipeline': BOXES}).problems
    options = {'val_dataloader.dataset.pipeline': BOXES, 'val_evaluator.metric': 'bbox'}
    assert not check(DETECTION, ['val'], **options).problems
    for split in ('train', 'val'):
        assert 'without the mask' in str(check(DETECTION, [split]).problems)
    options['val_evaluator.metric'] = ['bbox', 'segm']  # reads them whatever the pipeline does
    assert 'without the mask' in str(check(DETECTION, ['val'], **options).problems)


def test_the_unlabelled_part_of_a_semi_supervised_set(workspace):
    cfg = Config.fromfile(DETECTION)
    labelled = dict(cfg.train_dataloader.dataset)
    steps = [dict(type='LoadImageFromFile'), dict(type='LoadEmptyAnnotations')]
    branch = [dict(type='RandomFlip', prob=0.5), dict(type='PackDetInputs')]
    steps.append(dict(type='MultiBranch', branch_field=['student'], student=branch))
    keep = dict(filter_empty_gt=False)
    unlabelled = dict(labelled, ann_file='bare.json', filter_cfg=keep, pipeline=steps)
    cfg.train_dataloader.dataset = dict(type='ConcatDataset', datasets=[labelled, unlabelled])
    cfg.dump('semi.py')
    bare = json.loads((workspace / COCO).read_text())
    del bare['annotations']
    for categories in ([], bare['categories']):
        bare['categories'] = categories
        (workspace / 'data/shapes/bare.json').write_text(json.dumps(bare))
        for report in check_datasets('semi.py', ['train']):
            assert not report.problems
            assert not report.notes
        assert report.facts == ['16 of 16 images reach training']
    # Not with the filter that leaves out images without objects, nor as a labelled part.
    unlabelled['filter_cfg'] = dict(filter_empty_gt=True)
    cfg.train_dataloader.dataset = dict(type='ConcatDataset', datasets=[labelled, unlabelled])
    cfg.dump('semi.py')
    assert 'no image reaches' in str(check_datasets('semi.py', ['train'])[1].problems)
    report = check(DETECTION, **{'train_dataloader.dataset.ann_file': 'bare.json'})
    assert found(report, 'lists missing') == (1, 'annotations')


def test_entries_of_a_coco_file(workspace):
    def change(content):
        images, annotations = content['images'], content['annotations']
        images[1]['id'] = images[0]['id']
        del images[2]['height']
        images[3]['width'] = float('nan')
        images[4] = None
        images[5]['file_name'] = '../\x1b[2J\ud800.jpg'
        images[6]['width'] = 33
        annotations[0]['id'] = annotations[1]['id']
        annotations[2]['bbox'] = [1, 2, float('inf'), 4]
        annotations[3]['image_id'] = ['a list']
        del annotations[4]['area']
        content['categories'].append(dict(id=9, name='hexagon'))
        content['annotations'] = [a for a in annotations if a['image_id'] != images[7]['id']]

    edit(workspace / COCO, change)
    report = check(DETECTION)
    for kind, count in [
        ('images with a duplicate id', 1),
        ("images with 'height' missing", 2),
        ("images with 'width' missing", 2),
        ("images with 'file_name' missing", 1),
        ('annotations with a duplicate id', 1),
        ("annotations with 'bbox' missing", 1),
        ("annotations with 'image_id' missing", 1),
        ("annotations with 'area' missing", 1),
        ('images missing', 1),
        ('than the annotation file states', 1),
        ('categories that are no class', 1),
    ]:
        assert found(report, kind)[0] == count, kind
    assert found(report, 'without an annotation')[0] >= 1
    assert '\x1b' not in str(report)
    assert '\\ud800' in str(report)


@pytest.mark.parametrize(
    ('text', 'kind'),
    [
        ('not JSON', 'not JSON'),
        ('[' * 100_000, 'not JSON'),
        ('\xff', 'not JSON'),
        ('[]', 'lists missing'),
        ('{"images": 5, "annotations": {}}', 'lists missing'),
        ('{"images": [], "annotations": [], "categories": []}', 'without usable'),
    ],
)
def test_files_that_are_no_coco_files(workspace, text, kind):
    (workspace / COCO).write_bytes(text.encode('latin-1'))
    report = check(DETECTION)
    assert any(kind in name for name in report.problems)


@pytest.mark.parametrize(('split', 'faults'), [('test', 0), ('val', 1)])
def test_only_a_test_set_may_have_no_annotations(workspace, split, faults):
    edit(workspace / COCO.replace('training', 'validation'), lambda c: c.pop('annotations'))
    report = check(DETECTION, (split,))
    assert report.problems.total() == faults
    assert found(report, 'without an annotation')[0] == report.images == 2


def test_classes_and_categories(workspace):
    def change(content):
        content['categories'][0]['name'] = 'Circle'
        content['annotations'] = [a for a in content['annotations'] if a['category_id'] != 2]

    edit(workspace / COCO, change)
    report = check(DETECTION)
    kind = 'classes of the config that no category'
    assert found(report, kind) == (1, 'circle')
    assert found(report, 'categories that are no class') == (1, 'Circle')
    assert found(report, 'never annotated') == (2, 'circle square')
    assert 'never annotated' in str(report.problems)
    # Rare classes may be missing where one only evaluates.
    edit(workspace / COCO.replace('training', 'validation'), change)
    assert 'never annotated' in str(check(DETECTION, ['val']).notes)


def test_classes_in_another_order_than_the_categories(workspace):
    edit(workspace / COCO, lambda content: content['categories'].reverse())
    count, where = found(check(DETECTION), 'another order')
    assert count == 1
    assert "classes=('cross', 'star', 'triangle', 'square', 'circle')" in where


def test_two_categories_of_one_name(workspace):
    edit(workspace / COCO, lambda content: content['categories'].append(dict(id=9, name='star')))
    report = check(DETECTION)
    assert found(report, 'of the same name') == (1, 'star')
    assert len(report.problems) == 1
