"""The drawn data set, read back by the stock data sets and by pycocotools."""

import hashlib
import json

import cv2
import numpy as np
import pytest
from mmdet.datasets import CocoDataset
from mmengine import Config
from mmseg.datasets import BaseSegDataset
from pycocotools.coco import COCO
from timm.data import create_dataset

from mmivit.datasets.shapes import (
    BEACONS,
    CLASSES,
    HARD_CLASSES,
    HARD_SHAPES,
    PALETTE,
    SEMANTIC_CLASSES,
    ShapesSpec,
    draw_hard_scene,
    draw_scene,
    write_dataset,
)
from tests.conftest import CONFIGS, run_tool

SPEC = ShapesSpec(train=5, val=2, size=64, seed=3)
HARD = ShapesSpec(train=5, val=2, size=64, seed=3, hard=True)


@pytest.fixture
def root(tmp_path):
    assert write_dataset(tmp_path / 'shapes', SPEC)
    return tmp_path / 'shapes'


def files(root):
    return {p.relative_to(root): p.read_bytes() for p in root.rglob('*') if p.is_file()}


def test_the_ordinary_mode_draws_what_it_drew_before_there_was_a_hard_one(root):
    image, labels, _ = draw_scene(np.random.default_rng((0, 0, 0)), 64)
    assert labels == [2, 4, 0]
    assert hashlib.sha256(image.tobytes()).hexdigest().startswith('aa3d4cafb3b3606a')
    assert json.loads((root / 'shapes.json').read_text()).keys() == {
        'drawing',
        'train',
        'val',
        'size',
        'seed',
    }


def test_hard_mode_is_deterministic_and_read_by_stock_coco(tmp_path):
    for name in ('once', 'again'):
        assert write_dataset(tmp_path / name, HARD)
    assert files(tmp_path / 'once') == files(tmp_path / 'again')
    assert not write_dataset(tmp_path / 'once', HARD)
    with pytest.raises(FileExistsError):
        write_dataset(tmp_path / 'once', SPEC)
    with pytest.raises(ValueError, match='not classification'):
        write_dataset(tmp_path / 'new', HARD, classification=True)
    coco = CocoDataset(
        data_root=str(tmp_path / 'once'),
        ann_file='annotations/instances_training.json',
        data_prefix=dict(img='images/training/'),
        metainfo=dict(classes=HARD_CLASSES),
        pipeline=[],
    )
    assert len(coco) == HARD.train
    file = COCO(str(tmp_path / 'once/annotations/instances_training.json'))
    beacons = file.loadCats(file.getCatIds(supNms=['beacon']))
    assert [category['name'] for category in beacons] == list(BEACONS)
    assert all(len(coco.get_data_info(i)['instances']) >= 8 for i in range(len(coco)))
    label_map = cv2.imread(
        str(tmp_path / 'once/annotations/training/000000.png'), cv2.IMREAD_UNCHANGED
    )
    drawn = {instance['bbox_label'] for instance in coco.get_data_info(0)['instances']}
    assert set(np.unique(label_map)) == {1} | {label + 2 for label in drawn}


def test_hard_objects_have_the_mark_of_the_beacon_in_their_hue():
    seen = set()
    for number in range(12):
        image, labels, masks = draw_hard_scene(np.random.default_rng(number), 128)
        assert masks.sum(0).max() == 1
        assert masks.any((1, 2)).all()
        assert max(mask.sum() for mask in masks) < np.pi * (0.11 * 128) ** 2
        *objects, first, second, third = zip(labels, masks)
        assert 8 <= len(objects) <= 20
        marks = {}
        for label, mask in (first, second, third):
            hue, saturation, _ = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)[mask].T
            vivid = np.exp(2j * np.pi * hue[saturation > 200] / 180).sum()  # hues are a circle
            fifth = round(np.angle(vivid) / (2 * np.pi) * len(CLASSES)) % len(CLASSES)
            marks[CLASSES[fifth]] = HARD_CLASSES[label]
        assert set(marks) == set(HARD_SHAPES)
        for label, _ in objects:
            mark, shape = HARD_CLASSES[label].split()
            assert mark == marks[shape]
            seen.add(label)
    assert len(seen) == len(HARD_SHAPES) * len(BEACONS)


def test_deterministic_by_seed(root, tmp_path):
    write_dataset(tmp_path / 'again', SPEC)
    assert files(root) == files(tmp_path / 'again')
    write_dataset(tmp_path / 'other', ShapesSpec(train=5, val=2, size=64, seed=4))
    first = 'images/training/000000.jpg'
    assert (root / first).read_bytes() != (tmp_path / 'other' / first).read_bytes()


def test_a_larger_set_begins_with_the_smaller_and_splits_differ(root, tmp_path):
    write_dataset(tmp_path / 'larger', ShapesSpec(train=6, val=2, size=64, seed=3))
    for i in range(5):
        name = f'images/training/{i:06d}.jpg'
        assert (root / name).read_bytes() == (tmp_path / 'larger' / name).read_bytes()
    train, val = (
        (root / f'images/{s}/000000.jpg').read_bytes() for s in ('training', 'validation')
    )
    assert train != val


def test_visible_masks_are_disjoint_and_match_what_is_seen():
    rng = np.random.default_rng(0)
    for _ in range(20):
        image, labels, masks = draw_scene(rng, 96)
        assert image.shape == (96, 96, 3)
        assert image.dtype == np.uint8
        assert masks.shape == (len(labels), 96, 96)
        assert masks.sum(0).max() == 1
        assert masks.any((1, 2)).all()


def test_coco_and_label_maps_tell_the_same(root):
    coco = COCO(str(root / 'annotations/instances_training.json'))
    assert [c['name'] for c in coco.loadCats(coco.getCatIds())] == list(CLASSES)
    assert coco.getCatIds(supNms=['shape']) == coco.getCatIds()  # which some tools group by
    for image_id in coco.getImgIds():
        name = coco.imgs[image_id]['file_name']
        semantic = cv2.imread(
            str(root / 'annotations/training' / name.replace('.jpg', '.png')), cv2.IMREAD_UNCHANGED
        )
        expected = np.ones_like(semantic)
        for annotation in coco.imgToAnns[image_id]:
            mask = coco.annToMask(annotation).astype(bool)
            expected[mask] = annotation['category_id'] + 1
            y, x = np.nonzero(mask)
            left, top, width, height = annotation['bbox']
            assert (left, top) == (x.min(), y.min())
            assert (left + width, top + height) == (x.max() + 1, y.max() + 1)
            assert annotation['area'] == mask.sum()
        assert (semantic == expected).all()


def test_stock_datasets_read_it(root):
    coco = CocoDataset(
        data_root=str(root),
        ann_file='annotations/instances_training.json',
        data_prefix=dict(img='images/training/'),
        metainfo=dict(classes=CLASSES, palette=PALETTE),
        pipeline=[],
    )
    assert len(coco) == SPEC.train
    assert all(len(coco.get_data_info(i)['instances']) for i in range(len(coco)))
    segmentation = BaseSegDataset(
        data_root=str(root),
        data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation'),
        metainfo=dict(classes=SEMANTIC_CLASSES),
        reduce_zero_label=True,
        pipeline=[],
    )
    assert len(segmentation) == SPEC.val


def test_configs_name_the_classes_that_are_drawn():
    metainfo = Config.fromfile(CONFIGS / 'mask_rcnn_ivit_shapes.py').metainfo
    assert tuple(metainfo.classes) == CLASSES
    assert tuple(map(tuple, metainfo.palette)) == PALETTE


def test_an_existing_folder_is_safe(root):
    (root / 'images/training/._000000.jpg').touch()  # a Mac's, which is no image of it
    before = files(root)
    assert not write_dataset(root, SPEC)  # it is there already
    with pytest.raises(FileExistsError, match='--force'):
        write_dataset(root, ShapesSpec(train=2, val=1, size=64))
    assert files(root) == before
    write_dataset(root, ShapesSpec(train=2, val=1, size=64), force=True)
    assert json.loads((root / 'shapes.json').read_text())['train'] == 2
    (root / 'images/training/000001.jpg').unlink()
    with pytest.raises(FileExistsError, match='lacks images'):
        write_dataset(root, ShapesSpec(train=2, val=1, size=64))


def test_force_replaces_no_more_than_a_data_set(tmp_path):
    (tmp_path / 'thesis.tex').touch()
    with pytest.raises(FileExistsError, match='no drawn data set'):
        write_dataset(tmp_path, SPEC, force=True)
    assert files(tmp_path)


def test_an_interrupted_drawing_leaves_no_half_data_set(root, tmp_path, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr('mmivit.datasets.shapes._coco_mask', stop)
    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path / 'new', SPEC)
    assert not (tmp_path / 'new').exists()


def test_the_image_folder_for_classification(tmp_path):
    root = tmp_path / 'folder'
    assert write_dataset(root, SPEC, classification=True)
    assert not write_dataset(root, SPEC, classification=True)
    with pytest.raises(FileExistsError):
        write_dataset(root, SPEC)
    dataset = create_dataset('', str(root), split='train', is_training=True)
    assert len(dataset) == SPEC.train
    assert set(dataset.reader.class_to_idx) == set(CLASSES)
    image, _ = dataset[0]
    assert image.size == (64, 64)
    names = {path.parent.name for path in (root / 'validation').rglob('*.jpg')}
    assert names == set(CLASSES[:2])


def test_command(tmp_path):
    args = ('out', '--train', 2, '--val', 1, '--size', 48)
    done = run_tool('make_shapes.py', *args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert 'drawn' in done.stdout
    assert 'already' in run_tool('make_shapes.py', *args, cwd=tmp_path).stdout
    refused = run_tool('make_shapes.py', 'out', '--train', 3, cwd=tmp_path)
    assert refused.returncode == 1
    assert '--force' in refused.stderr
    assert 'Traceback' not in refused.stderr
    hard = run_tool('make_shapes.py', 'hard', '--hard', *args[1:], cwd=tmp_path)
    assert hard.returncode == 0, hard.stderr
    assert json.loads((tmp_path / 'hard/shapes.json').read_text())['hard']
    assert 'at least 32' in run_tool('make_shapes.py', 'x', '--size', 8, cwd=tmp_path).stderr
