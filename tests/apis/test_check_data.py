"""Faults put into a drawn data set, each of them found, counted and named."""

import json
import struct
import zlib

import cv2
import numpy as np
import pytest
from mmcv.transforms import BaseTransform
from mmengine.config import Config
from mmengine.registry import TRANSFORMS
from PIL import Image
from pycocotools import mask as rle

from mmivit.apis.check_data import check_before_run, check_datasets
from mmivit.apis.test import evaluate
from mmivit.apis.train import train
from mmivit.datasets.coco_file import unpack_runs
from mmivit.datasets.shapes import ShapesSpec, write_dataset
from mmivit.errors import LaunchError
from tests.conftest import CONFIGS, run_tool

DETECTION = CONFIGS / 'mask_rcnn_ivit_shapes.py'
SEGMENTATION = CONFIGS / 'upernet_ivit_shapes.py'
IMAGES = 'data/shapes/images/training'
LABELS = 'data/shapes/annotations/training'
COCO = 'data/shapes/annotations/instances_training.json'
TRAIN = 16


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    write_dataset(tmp_path / 'data/shapes', ShapesSpec(train=TRAIN, val=2, size=32))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check(config, splits=('train',), **options):
    (report,) = check_datasets(str(config), splits, options)
    return report


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def rename(path, new):
    """Change the file names of a COCO file's images."""

    def change(content):
        for image in content['images']:
            image['file_name'] = new(image['file_name'])

    edit(path, change)


def found(report, kind):
    """How many of the one kind whose name contains this, and the examples."""
    counts = report.problems + report.notes
    (name,) = [name for name in counts if kind in name]
    return counts[name], ' '.join(report.examples[name])


def header_of_png(width, height):
    chunks = [(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)), (b'IEND', b'')]
    packed = [
        struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))
        for name, data in chunks
    ]
    return b'\x89PNG\r\n\x1a\n' + b''.join(packed)


def test_sound_sets_from_another_directory_end_with_zero(workspace, tmp_path):
    elsewhere = tmp_path / 'elsewhere'
    elsewhere.mkdir()
    root = f'data_root={workspace}/data/shapes/'
    for config in (DETECTION, SEGMENTATION):
        options = [f'{split}_dataloader.dataset.{root}' for split in ('train', 'val', 'test')]
        done = run_tool('check_data.py', config, '--cfg-options', *options, cwd=elsewhere)
        assert done.returncode == 0, done.stderr
        assert f'training{".json" * (config == DETECTION)}, 16 images: 0 problems' in done.stdout
        assert done.stdout.count('val, test:') == 1  # one data set, read once
        assert '16/16' in done.stderr


def test_problems_end_with_one_and_bad_usage_with_two(workspace):
    (workspace / IMAGES / '000003.jpg').unlink()
    done = run_tool('check_data.py', DETECTION, '--split', 'train', cwd=workspace)
    assert done.returncode == 1
    assert 'problem: 1 images missing' in done.stdout
    assert f'{IMAGES}/000003.jpg' in done.stdout
    assert 'val' not in done.stdout
    done = run_tool('check_data.py', 'nowhere.py', cwd=workspace)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith('check_data: config: no file nowhere.py')
    done = run_tool('train.py', '--help', cwd=workspace)
    assert 'tools/check_data.py CONFIG' in done.stdout


def test_what_cannot_be_looked_at(workspace):
    (workspace / 'empty.py').write_text('train_dataloader = None\n')
    with pytest.raises(LaunchError, match='no train_dataloader'):
        check_datasets('empty.py')
    with pytest.raises(LaunchError, match='no val_dataloader'):
        check_datasets('empty.py', ['val'])
    with pytest.raises(LaunchError, match='Nothing'):
        check(DETECTION, **{'train_dataloader.dataset.type': 'Nothing'})
    with pytest.raises(LaunchError, match=r'check_data\.py CONFIG'):
        check(DETECTION, **{'train_dataloader.dataset.ann_file': 'none.json'})
    report = check(DETECTION, **{'train_dataloader.dataset.type': 'XMLDataset'})
    assert found(report, 'data sets that are not read') == (1, 'XMLDataset')
    report = check(DETECTION, **{'train_dataloader.dataset.metainfo.classes': 'cat'})
    assert found(report, 'one text')[0] == 1


def test_wrappers_are_looked_through(workspace):
    cfg = Config.fromfile(DETECTION)
    part = dict(cfg.train_dataloader.dataset)
    other = dict(part, data_prefix=dict(img='images/validation/'))
    inner = dict(type='ConcatDataset', datasets=[part, other, part])
    cfg.train_dataloader.dataset = dict(type='RepeatDataset', times=3, dataset=inner)
    cfg.dump('wrapped.py')
    sound, wrong = check_datasets('wrapped.py', ['train'])
    assert not sound.problems
    assert found(wrong, 'images missing')[0] == TRAIN - 2


@pytest.mark.parametrize('config', [DETECTION, SEGMENTATION])
def test_images(workspace, config):
    def path(number):
        return workspace / IMAGES / f'{number:06d}.jpg'

    images = [Image.open(path(number)).copy() for number in range(11)]
    whole = path(0).read_bytes()
    path(0).write_bytes(b'')
    path(1).write_bytes(b'GIF, or is it?')
    path(2).write_bytes(whole[: len(whole) // 2])
    path(3).write_bytes(header_of_png(1_000_000, 1_000_000))
    path(4).write_bytes(header_of_png(10_000, 9_000))
    images[5].crop((0, 0, 1, 1)).save(path(5))
    images[6].convert('L').save(path(6))
    images[7].convert('CMYK').save(path(7))
    images[8].convert('RGBA').save(path(8), 'PNG')
    deep = np.asarray(images[9])[..., ::-1].astype(np.uint16) * 256
    path(9).write_bytes(cv2.imencode('.png', deep)[1].tobytes())
    turned = images[10].resize((32, 40))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(path(10), exif=exif)
    report = check(config)
    for kind, number in [
        ('images empty (0 bytes)', 0),
        ('images that are no image', 1),
        ('images truncated or corrupt', 2),
        ('images under 31 px', 5),
        ('grey images, loaded as 3 channels of uint8', 6),
        ('CMYK images, loaded as 3 channels of uint8', 7),
        ('RGBA images, loaded as 3 channels of uint8', 8),
        ('16-bit images, loaded as 3 channels of uint8', 9),
        ('EXIF orientation', 10),
    ]:
        count, where = found(report, kind)
        assert count == 1, kind
        assert path(number).name in where
    assert found(report, 'images enormous')[0] == 2
    assert '10000 x 9000' in found(report, 'images enormous')[1]
    assert 'orientation 6, loaded as 40 x 32' in found(report, 'EXIF')[1]
    assert sum(report.notes.values()) == 5
    if config == DETECTION:
        count, where = found(report, 'another size than the annotation file states')
        assert count == 2  # 1 x 1, and the turned one
        assert '32 x 32 stated, 40 x 32 loaded' in where
    else:
        assert found(report, 'another size than the image')[0] == 2


def test_twelve_bits_in_sixteen(workspace):
    """mmcv decodes to the upper byte, of which such files use four bits."""
    for number in range(4):
        path = workspace / IMAGES / f'{number:06d}.jpg'
        image = np.asarray(Image.open(path))
        deep = (image.astype(np.uint16) << (4, 8, 4, 0)[number]) * (number != 3)
        deep = deep[..., 0] if number == 2 else deep
        path.write_bytes(cv2.imencode('.png', deep)[1].tobytes())
    report = check(SEGMENTATION)
    count, where = found(report, '12 bits or fewer in 16-bit files')
    assert count == 2
    assert '000000.jpg: at most 15 of 255' in where
    assert '000002.jpg' in where
    assert sum(report.problems.values()) == 2
    assert list(report.notes).count('images that load nearly black') == 1  # and is
    loader = dict(type='LoadImageFromFile', color_type='unchanged')
    steps = [loader, dict(type='LoadAnnotations')]
    assert not check(SEGMENTATION, **{'train_dataloader.dataset.pipeline': steps}).problems


def test_a_loader_that_fails(workspace):
    loader = dict(type='LoadImageFromFile', imdecode_backend='none')
    report = check(SEGMENTATION, **{'train_dataloader.dataset.pipeline': [loader]})
    count, where = found(report, 'images that the pipeline fails to load')
    assert count == TRAIN
    assert 'none is not supported' in where
    assert len(report.problems) == 1  # label maps are not asked for


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


VALIDATION = COCO.replace('training', 'validation')


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
    with pytest.raises(LaunchError, match=r'data/shapesannotations/val\.json'):
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


BOXES = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs'),
]


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


@TRANSFORMS.register_module()
class LoadBands(BaseTransform):
    """Six bands of a .npy file."""

    def transform(self, results):
        return dict(results, img=np.load(results['img_path']))


@TRANSFORMS.register_module()
class LoadOwnAnnotations(BaseTransform):
    def transform(self, results):
        return dict(results, gt_seg_map=np.load(results['seg_map_path']).astype(np.int64))


def test_loaders_of_ones_own_are_used_instead_of_pillow(workspace):
    for path in (workspace / IMAGES).iterdir():
        rows = np.asarray(Image.open(path))
        np.save(path.with_suffix('.npy'), np.dstack([rows, rows]))
        path.unlink()
    for path in (workspace / LABELS).iterdir():
        np.save(path.with_suffix('.npy'), np.array(Image.open(path)) - 1)
        path.unlink()
    rename(workspace / COCO, lambda name: name.replace('jpg', 'npy'))
    steps = [dict(type='LoadBands'), *BOXES[1:]]
    report = check(DETECTION, **{'train_dataloader.dataset.pipeline': steps})
    assert not report.problems
    assert report.images == TRAIN
    options = {
        'train_dataloader.dataset.img_suffix': '.npy',
        'train_dataloader.dataset.seg_map_suffix': '.npy',
        'train_dataloader.dataset.pipeline': [
            dict(type='LoadBands'),
            dict(type='LoadOwnAnnotations'),
        ],
    }
    report = check(SEGMENTATION, **options)
    assert not report.problems
    assert report.images == TRAIN
    np.save(workspace / LABELS / '000000.npy', np.full((32, 40), 9))
    (workspace / IMAGES / '000001.npy').write_bytes(b'')
    report = check(SEGMENTATION, **options)
    assert found(report, 'images that the pipeline fails to load')[0] == 1
    assert found(report, 'another size than the image')[0] == 1
    assert found(report, 'none of the 6 classes')[1].endswith(': 9')
    report = check(DETECTION, **{'train_dataloader.dataset.pipeline': BOXES})
    assert found(report, 'images that are no image')[0] == TRAIN - 1


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


def test_label_maps(workspace):
    def path(number):
        return workspace / LABELS / f'{number:06d}.png'

    labels = [np.array(Image.open(path(number))) for number in range(8)]
    path(0).unlink()
    path(1).write_bytes(path(1).read_bytes()[:60])
    Image.fromarray(labels[2][:20]).save(path(2))
    Image.fromarray(np.dstack([labels[3]] * 3)).save(path(3))
    Image.fromarray(labels[4].astype(np.uint16)).save(path(4))
    # 0 and 255 are ignored, 6 is the last of six classes
    labels[5][0, :5] = 0, 255, 6, 7, 254
    Image.fromarray(labels[5]).save(path(5))
    palette = Image.fromarray(labels[6], 'P')
    palette.putpalette(bytes(range(256)) * 3)
    palette.save(path(6))
    path(7).write_bytes(header_of_png(20_000, 20_000))
    report = check(SEGMENTATION)
    for kind, count, where in [
        ('label maps missing', 1, '000000.png'),
        ('label maps truncated', 1, '000001.png'),
        ('another size than the image', 1, '000002.png: 32 x 20, image 32 x 32'),
        ('not 8-bit with a single channel', 2, '000003.png: mode RGB'),
        ('none of the 6 classes', 1, '000005.png: 7, 254'),
        ('label maps enormous', 1, '000007.png'),
    ]:
        assert found(report, kind)[0] == count, kind
        assert where in found(report, kind)[1]
    assert sum(report.problems.values()) == 7
    assert not report.notes
    (workspace / IMAGES / '000009.jpg').unlink()
    kind = 'label maps without an image'
    assert found(check(SEGMENTATION), kind) == (1, f'{LABELS}/000009.png')


def test_labels_without_reduce_zero_label(workspace):
    report = check(SEGMENTATION, **{'train_dataloader.dataset.reduce_zero_label': False})
    assert ': 6' in found(report, 'none of the 6 classes')[1]


def test_a_folder_without_images_of_the_suffix(workspace):
    report = check(SEGMENTATION, **{'train_dataloader.dataset.img_suffix': '.jpeg'})
    assert found(report, 'without an image named *.jpeg')[1].endswith("holds {'.jpg': 16}")
    assert len(report.problems) == 1


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
    with pytest.raises(LaunchError, match=r'train pipeline wants masks.*Either .* or use boxes'):
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
