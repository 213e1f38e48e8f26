"""Data sets of photographs, out of small folders made like those of the unpacked wheels."""

import csv
import json

import cv2
import numpy as np
import pytest
import torch
from mmdet.datasets import CocoDataset
from mmdet.evaluation import CocoMetric
from timm.data import create_dataset

from mmivit.datasets.photographs import split_table
from mmivit.datasets.solar_cells import CELL_CLASSES, STRETCH, CellsSpec, write_cells
from mmivit.datasets.tree_crowns import (
    MIN_SHOWN,
    TREE_CLASSES,
    Photograph,
    TreesSpec,
    cut,
    read_trees,
    write_trees,
)
from tests.conftest import run_tool

SIZES = dict(large=(230, 170), small=(64, 64), test=(150, 101))  # width, height
TREES = TreesSpec(size=64, held_out=('test',))
CELLS = CellsSpec(size=32)


def voc(width, height, boxes, before=''):
    objects = ''.join(
        '<object><name>Tree</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax>'
        '<ymax>{}</ymax></bndbox></object>'.format(*box)
        for box in boxes
    )
    size = f'<size><width>{width}</width><height>{height}</height><depth>3</depth></size>'
    return f'{before}<annotation>{size}{objects}</annotation>'


@pytest.fixture(scope='module')
def trees(tmp_path_factory):
    """Where a wheel like deepforest's was unpacked; box corners are pixels, counted from 1."""
    source = tmp_path_factory.mktemp('trees')
    data = source / 'deepforest/data'
    data.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, (width, height) in SIZES.items():
        cv2.imwrite(str(data / f'{name}.png'), rng.integers(256, size=(height, width, 3)))
        first = rng.integers(1, (width - 30, height - 30), size=(40, 2))
        boxes = np.concatenate([first, first + rng.integers(5, 30, size=(40, 2))], 1)
        boxes[0] = 1, 1, width, 20
        (data / f'{name}.xml').write_text(voc(width, height, boxes.tolist()))
    (data / 'other.png').write_bytes(b'')  # a picture without boxes is none of ours
    return source


@pytest.fixture(scope='module')
def cells(tmp_path_factory):
    """Where a wheel like elpv-dataset's was unpacked: eight modules of a type, 0 to 7 of 9 bad."""
    source = tmp_path_factory.mktemp('cells')
    images = source / 'elpv_dataset/data/images'
    images.mkdir(parents=True)
    rows = []
    for kind in ('mono', 'poly'):
        for module in range(8):
            for number in range(STRETCH):
                chance = float(number % 9 < module) if number % 5 else 0.3333333333333333
                name = f'cell{len(rows) + 1:04d}.png'
                grey = np.full((30, 30), 20 + 100 * (kind == 'mono') + module, np.uint8)
                cv2.imwrite(str(images / name), grey)
                rows.append((f'images/{name}', chance, kind))
    with (images.parent / 'labels.csv').open('w') as file:
        csv.writer(file, delimiter=' ').writerows(rows)
    return source


def files(root):
    return {p.relative_to(root): p.read_bytes() for p in root.rglob('*') if p.is_file()}


def coco(root, split):
    return CocoDataset(
        data_root=str(root),
        ann_file=f'annotations/instances_{split}.json',
        data_prefix=dict(img=f'images/{split}/'),
        metainfo=dict(classes=TREE_CLASSES),
        pipeline=[],
    )


def test_tiles_are_read_by_stock_coco_and_split_by_photograph(trees, tmp_path):
    assert write_trees(trees, tmp_path / 'out', TREES)
    rows = json.loads((tmp_path / 'out/split.json').read_text())
    photographs = {photo.path.stem: photo for photo in read_trees(trees)}
    seen = {}
    for split in ('training', 'validation'):
        data = coco(tmp_path / 'out', split)
        found = [data.get_data_info(i) for i in range(len(data))]
        stated = [row for row in rows if row['split'] == split]
        assert len(found) == sum(row['tiles'] for row in stated)
        assert sum(len(info['instances']) for info in found) == sum(r['boxes'] for r in stated)
        seen[split] = {row['photograph'] for row in stated}
        for info in found:
            name, left, top = info['img_path'].split('/')[-1].removesuffix('.png').split('_')
            assert name in seen[split]
            left, top = int(left), int(top)
            tile = cv2.imread(info['img_path'])
            picture = cv2.imread(str(photographs[name].path))
            assert (tile == picture[top : top + 64, left : left + 64]).all()
            assert tile.shape == (info['height'], info['width'], 3)
            for box in np.array([instance['bbox'] for instance in info['instances']]):
                assert (box >= 0).all()
                assert (box <= 64).all()
                # Some box of the photograph, clipped to the tile.
                clipped = (photographs[name].boxes - [left, top] * 2).clip(0, 64)
                assert (clipped == box).all(1).any()
    assert seen == dict(training={'large', 'small'}, validation={'test'})


def test_stock_metric_scores_the_boxes_against_themselves(trees, tmp_path):
    write_trees(trees, tmp_path / 'out', TREES)
    metric = CocoMetric(str(tmp_path / 'out/annotations/instances_validation.json'), metric='bbox')
    data = coco(tmp_path / 'out', 'validation')
    metric.dataset_meta = data.metainfo
    for info in (data.get_data_info(i) for i in range(len(data))):
        boxes = np.array([instance['bbox'] for instance in info['instances']]).reshape(-1, 4)
        predicted = dict(
            bboxes=torch.from_numpy(boxes),
            scores=torch.ones(len(boxes)),
            labels=torch.zeros(len(boxes), dtype=torch.int64),
        )
        sample = dict(info, ori_shape=(info['height'], info['width']), pred_instances=predicted)
        metric.process({}, [sample])
    assert metric.evaluate(len(data))['coco/bbox_mAP'] == 1


@pytest.mark.parametrize('size', [40, 64, 100, 400])
@pytest.mark.parametrize('overlap', [0, 15])
def test_no_crown_is_lost_and_every_pixel_is_on_a_tile(trees, size, overlap):
    for photo in read_trees(trees):
        # Those smaller than a tile are promised.
        sides = photo.boxes[:, 2:] - photo.boxes[:, :2]
        photo = photo._replace(boxes=photo.boxes[(sides <= size).all(1)])
        tiles = cut(photo, size, overlap)
        covered = np.zeros((photo.height, photo.width), int)
        for tile in tiles:
            here = covered[tile.top : tile.top + tile.height, tile.left : tile.left + tile.width]
            assert here.shape == (min(size, photo.height), min(size, photo.width))
            here += 1
            touched = 0
            for index, (left, top, right, bottom) in enumerate(photo.boxes):
                wide = min(right, tile.left + tile.width) - max(left, tile.left)
                high = min(bottom, tile.top + tile.height) - max(top, tile.top)
                share = max(wide, 0) * max(high, 0) / ((right - left) * (bottom - top))
                assert (index in tile.kept) == (share >= MIN_SHOWN)
                touched += share > 0
            assert tile.dropped == touched - len(tile.boxes)
        assert covered.min() == 1
        assert {index for tile in tiles for index in tile.kept} == set(range(len(photo.boxes)))
        for one in tiles:
            beside = [t.left for t in tiles if t.top == one.top and t.left > one.left]
            assert not beside or min(beside) <= one.left + size - overlap


def test_corners_of_voc_are_pixels_counted_from_1(trees):
    photo = read_trees(trees)[0]
    assert photo.boxes[0].tolist() == [0, 0, photo.width, 20]


@pytest.mark.parametrize(
    ('content', 'said'),
    [
        ('<annotation>', 'not an annotation file of Pascal VOC'),
        ('<annotation/>', 'not an annotation file of Pascal VOC'),
        (voc(64, 64, [(1, 1, 'x', 3)]), 'not an annotation file of Pascal VOC'),
        (voc(64, 64, [(1, 1, 'nan', 3)]), 'outside'),
        (voc(64, 64, [(1, 1, 65, 3)]), 'outside its 64 x 64'),
        (voc(64, 64, [(9, 9, 8, 9)]), 'empty'),
        (voc(65, 64, []), '64 x 64 pixels, its annotation 65 x 64'),
        (voc(64, 64, [], '<!DOCTYPE a [<!ENTITY b "c">]>'), 'declares a document type'),
        (voc(64, 64, [], '<!DOCTYPE a>').encode('utf-16'), 'not an annotation file'),
    ],
)
def test_a_damaged_annotation_is_refused(tmp_path, content, said):
    data = tmp_path / 'deepforest/data'
    data.mkdir(parents=True)
    for name in ('one', 'two'):
        cv2.imwrite(str(data / f'{name}.png'), np.zeros((64, 64, 3), np.uint8))
        (data / f'{name}.xml').write_text(voc(64, 64, []))
    bad = content if isinstance(content, bytes) else content.encode()
    (data / 'one.xml').write_bytes(bad)
    with pytest.raises(ValueError, match=said):
        write_trees(tmp_path, tmp_path / 'out', TreesSpec(held_out=('one',)))
    assert not (tmp_path / 'out').exists()


def test_a_split_needs_photographs_on_both_sides(trees, tmp_path):
    for names, said in ((('nowhere',), 'large, small, test'), ((), 'both'), (SIZES, 'both')):
        with pytest.raises(ValueError, match=said):
            write_trees(trees, tmp_path / 'out', TreesSpec(held_out=tuple(names)))
    for wrong in (dict(size=8), dict(overlap=400), dict(overlap=-1)):
        with pytest.raises(ValueError, match='expected'):
            TreesSpec(**wrong)


def test_a_photograph_without_boxes_has_empty_tiles():
    (tile,) = cut(Photograph(None, 30, 20, np.zeros((0, 4))), 64, 0)
    assert tile.boxes.shape == (0, 4)
    assert tile[:4] == (0, 0, 30, 20)


def test_cells_are_read_by_timm_balanced_and_split_by_stretch(cells, tmp_path):
    assert write_cells(cells, tmp_path / 'out', CELLS)
    labels = (cells / 'elpv_dataset/data/labels.csv').read_text().splitlines()
    stretches = {}
    for split in ('train', 'validation'):
        dataset = create_dataset('', str(tmp_path / 'out'), split=split)
        assert set(dataset.reader.class_to_idx) == set(CELL_CLASSES)
        assert dataset[0][0].size == (32, 32)
        count = {}
        stretches[split] = set()
        for path in (tmp_path / 'out' / split).rglob('*.png'):
            number = int(path.stem.removeprefix('cell')) - 1
            _, chance, kind = labels[number].split()
            assert path.parent.name == {'0.0': 'sound', '1.0': 'defective'}[chance]
            count[kind, path.parent.name] = count.get((kind, path.parent.name), 0) + 1
            stretches[split].add(number // STRETCH)
        assert len(count) == 4
        for kind in ('mono', 'poly'):
            assert count[kind, 'sound'] == count[kind, 'defective']
    assert not stretches['train'] & stretches['validation']
    rows = json.loads((tmp_path / 'out/split.json').read_text())
    total = sum(value for row in rows for value in row.values() if isinstance(value, int))
    assert total == len(labels)  # every cell is somewhere, if left out
    assert split_table(tmp_path / 'out').count('\n') == 1 + len(rows)


def test_the_split_is_the_seeds(cells, tmp_path):
    for name, seed in (('once', 0), ('again', 0), ('other', 1)):
        write_cells(cells, tmp_path / name, CellsSpec(size=32, seed=seed))
    assert files(tmp_path / 'once') == files(tmp_path / 'again')
    assert files(tmp_path / 'once').keys() != files(tmp_path / 'other').keys()


@pytest.mark.parametrize(
    ('line', 'said'),
    [
        ('images/cell0001.png 2.0 mono', 'line 1: expected'),
        ('images/cell0001.png nan mono', 'line 1: expected'),
        ('images/cell0001.png 1.0 other', 'line 1: expected'),
        ('images/cell0001.png', 'line 1: expected'),
        ('../../secret.png 1.0 mono', 'line 1.*images/secret.png is not there'),
        ('images/cell0001.png 1.0 mono', 'no mono cells of both classes'),
    ],
)
def test_damaged_labels_are_refused(tmp_path, line, said):
    images = tmp_path / 'elpv_dataset/data/images'
    images.mkdir(parents=True)
    for path in (images / 'cell0001.png', tmp_path / 'secret.png'):
        cv2.imwrite(str(path), np.zeros((30, 30), np.uint8))
    (images.parent / 'labels.csv').write_text(line)
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        write_cells(tmp_path, tmp_path / 'out', CELLS)
    assert not (tmp_path / 'out').exists()


def test_an_existing_folder_is_safe(cells, trees, tmp_path):
    root = tmp_path / 'out'
    assert write_trees(trees, root, TREES)
    before = files(root)
    assert not write_trees(trees, root, TREES)  # it is there already
    with pytest.raises(FileExistsError, match='--force'):
        write_cells(cells, root, CELLS)
    assert files(root) == before
    assert write_cells(cells, root, CELLS, force=True)
    next(root.rglob('*.png')).unlink()
    with pytest.raises(FileExistsError, match='lacks images'):
        write_cells(cells, root, CELLS)
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine/thesis.tex').touch()
    with pytest.raises(FileExistsError, match='no data set of photographs'):
        write_cells(cells, tmp_path / 'mine', CELLS, force=True)


def test_an_interrupted_writing_leaves_no_half_data_set(cells, tmp_path, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr('mmivit.datasets.solar_cells.write_image', stop)
    with pytest.raises(KeyboardInterrupt):
        write_cells(cells, tmp_path / 'out', CELLS)
    assert not (tmp_path / 'out').exists()


def test_command(trees, cells, tmp_path):
    args = ('trees', trees, 'trees', '--size', 64, '--held-out', 'test')
    done = run_tool('make_photographs.py', *args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert 'written' in done.stdout
    assert '| validation | test | 40 |' in done.stdout
    done = run_tool('make_photographs.py', 'cells', cells, 'cells', '--size', 32, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert '| validation | poly |' in done.stdout
    again = run_tool('make_photographs.py', 'cells', cells, 'cells', '--size', 32, cwd=tmp_path)
    assert 'already' in again.stdout
    for kind, package in (('trees', 'deepforest'), ('cells', 'elpv-dataset')):
        wrong = run_tool('make_photographs.py', kind, tmp_path, 'new', cwd=tmp_path)
        assert wrong.returncode == 1
        assert f'pip download --no-deps {package}' in wrong.stderr
        assert wrong.stderr.count('\n') == 1
