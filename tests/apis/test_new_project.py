"""Projects out of what labelling tools write, made here from the drawn data set."""

import csv
import json
from xml.sax.saxutils import quoteattr

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from pycocotools import mask as coco_mask

from mmivit.apis.new_project import new_project
from mmivit.datasets.shapes import ShapesSpec, write_dataset
from mmivit.datasets.splits import find_groups, hold_out, looks_tiled
from mmivit.errors import LaunchError
from tests.conftest import CONFIGS, ROOT, run_tool


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
    """The drawn images, their COCO file's content, and their objects: (class, x, y, w, h)."""
    root = tmp_path_factory.mktemp('drawn') / 'shapes'
    write_dataset(root, ShapesSpec(train=6, val=2, size=64))
    coco = json.loads((root / 'annotations/instances_training.json').read_text())
    return root, coco, objects_of(coco)


def objects_of(coco):
    names = {entry['id']: entry['name'] for entry in coco['categories']}
    objects = {entry['file_name']: [] for entry in coco['images']}
    files = {entry['id']: entry['file_name'] for entry in coco['images']}
    for item in coco['annotations']:
        objects[files[item['image_id']]].append((names[item['category_id']], *item['bbox']))
    return objects


def polygons(coco, file_name):
    """Classes, boxes and outlines of an image's masks."""
    names = {entry['id']: entry['name'] for entry in coco['categories']}
    (number,) = (entry['id'] for entry in coco['images'] if entry['file_name'] == file_name)
    for item in coco['annotations']:
        if item['image_id'] == number:
            mask = coco_mask.decode(item['segmentation'])
            outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
            outline = max(outlines, key=cv2.contourArea).reshape(-1, 2).tolist()
            yield names[item['category_id']], item['bbox'], outline


def write_voc(folder, coco, objects):
    for name, things in objects.items():
        boxes = ''.join(
            f'<object><name>{kind}</name><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin>'
            f'<xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>'
            for kind, x, y, w, h in things
        )
        (folder / name).with_suffix('.xml').write_text(f'<annotation>{boxes}</annotation>')


def write_yolo(folder, coco, objects):
    names = [entry['name'] for entry in coco['categories']]
    (folder / 'data.yaml').write_text(f'names: {names}')
    for name, things in objects.items():
        lines = [
            f'{names.index(kind)} {(x + w / 2) / 64} {(y + h / 2) / 64} {w / 64} {h / 64}'
            for kind, x, y, w, h in things
        ]
        (folder / name).with_suffix('.txt').write_text('\n'.join(lines))


def write_labelme(folder, coco, objects):
    for name in objects:
        shapes = [
            dict(label=kind, shape_type='polygon', points=points)
            for kind, _, points in polygons(coco, name)
        ]
        shapes.append(dict(label='circle', shape_type='point', points=[[1, 1]]))
        content = dict(imagePath=f'..\\{name}', imageWidth=64, imageHeight=64, shapes=shapes)
        (folder / name).with_suffix('.json').write_text(json.dumps(content))


def write_cvat(folder, coco, objects):
    images = ''
    for name, things in objects.items():
        shapes = '<tag label="night"/><points label="circle" points="1,1"/>'
        for i, (kind, x, y, w, h) in enumerate(things):
            corners = f'{x},{y};{x + w},{y};{x + w},{y + h};{x},{y + h}'
            forms = (
                f'<box label="{kind}" xtl="{x}" ytl="{y}" xbr="{x + w}" ybr="{y + h}"/>',
                f'<polygon label="{kind}" points="{corners}"/>',
                f'<mask label="{kind}" rle="0,{int(w) * int(h)}" left="{int(x)}" '
                f'top="{int(y)}" width="{int(w)}" height="{int(h)}"/>',
            )
            shapes += forms[i % 3]
        images += f'<image name={quoteattr(name)} width="64" height="64">{shapes}</image>'
    (folder / 'annotations.xml').write_text(f'<annotations>{images}</annotations>')


def write_coco(folder, coco, objects):
    """In two files, of images in a folder that is not the one asked for."""
    half = len(coco['images']) // 2
    for i, images in enumerate((coco['images'][:half], coco['images'][half:])):
        ids = {entry['id'] for entry in images}
        part = dict(
            coco,
            images=[dict(entry, file_name=f'elsewhere/{entry["file_name"]}') for entry in images],
            annotations=[item for item in coco['annotations'] if item['image_id'] in ids],
        )
        (folder / f'{i}.json').write_text(json.dumps(part))


FORMATS = dict(
    COCO=(write_coco, 'masks'),
    voc=(write_voc, 'boxes'),
    yolo=(write_yolo, 'boxes'),
    labelme=(write_labelme, 'masks'),
    CVAT=(write_cvat, 'boxes'),
)


@pytest.mark.parametrize('form', FORMATS)
def test_every_format_gives_the_same_objects(drawn, form, tmp_path):
    if form != 'COCO':
        pytest.importorskip('defusedxml' if form == 'CVAT' else 'supervision')
    root, coco, objects = drawn
    write, task = FORMATS[form]
    (tmp_path / 'labels').mkdir()
    write(tmp_path / 'labels', coco, objects)
    project = new_project(
        root / 'images/training', tmp_path / 'mine', CONFIGS, tmp_path / 'labels',
        val=['0.4'], small=True, copy=form == 'voc', settings=dict(epochs=3),
    )  # fmt: skip
    assert sum(sum(report.problems.values()) for report in project.reports) == 0
    found = {}
    for split in ('train', 'val'):
        written = json.loads((tmp_path / f'mine/annotations/{split}.json').read_text())
        found |= objects_of(written)
        assert all('segmentation' in item for item in written['annotations']) == (task == 'masks')
        assert {entry['id'] for entry in written['annotations']} == {
            *range(1, len(written['annotations']) + 1)
        }
    assert found.keys() == objects.keys()
    # The outline of a polygon goes through the middle of the border's pixels, half a pixel inside.
    for name in objects:
        given, read = sorted(objects[name]), sorted(found[name])
        assert [thing[0] for thing in read] == [thing[0] for thing in given]
        for one, two in zip(given, read):
            assert two[1:] == pytest.approx(one[1:], abs=2 if form == 'labelme' else 0.01)
    cfg = Config.fromfile(project.configs[0])
    assert cfg.model.type == dict(masks='MaskRCNN', boxes='FasterRCNN')[task]
    assert cfg.model.backbone.arch == 'nano'
    assert cfg.train_cfg.max_epochs == 3
    copied = sorted(path.name for path in (tmp_path / 'mine').glob('images/*'))
    assert copied == (sorted(objects) if form == 'voc' else [])
    if task == 'boxes':
        assert Config.fromfile(project.configs[1]).model.bbox_head.num_classes == len(
            cfg.train_dataloader.dataset.metainfo.classes
        )
    notes = '\n'.join(project.notes)
    if form == 'CVAT':
        assert '6 CVAT shapes that are no box or mask, left out: points' in notes
        assert 'training is on boxes alone' in notes
    if form == 'labelme':
        assert 'Skipped unsupported LabelMe shape type' in notes


def test_label_maps(drawn, tmp_path):
    root, _, _ = drawn
    (tmp_path / 'images').mkdir()
    for i, path in enumerate(sorted((root / 'images/training').iterdir())):
        image = cv2.imread(str(path))
        cv2.imwrite(str(tmp_path / 'images' / f'{path.stem}.{("png", "jpg")[i % 2]}'), image)
    maps = root / 'annotations/training'
    args = (tmp_path / 'images', tmp_path / 'mine', CONFIGS, maps)
    with pytest.raises(
        LaunchError, match=r'values 1, 2, .* name the values 0 to \d with --classes'
    ):
        new_project(*args)
    project = new_project(*args, classes=list('abcdefg'), small=True, val='0.4')
    # Nothing drawn has the value 0.
    found = {kind for report in project.reports for kind in report.problems}
    assert found == {'classes that are never annotated'}
    dataset = Config.fromfile(project.configs[0]).train_dataloader.dataset
    listed = [(tmp_path / f'mine/{s}.txt').read_text().split() for s in ('train', 'val')]
    assert [len(names) for names in listed] == [4, 2]
    for name in (*listed[0], *listed[1]):
        original = maps / f'{name.rpartition(".")[0]}.png'
        assert (tmp_path / f'mine/labels/{name}.png').read_bytes() == original.read_bytes()
    assert dataset.ann_file == 'train.txt'


def test_faults_are_told_in_a_line(drawn, tmp_path):
    root, coco, objects = drawn
    images = root / 'images/training'
    labels = tmp_path / 'labels'
    labels.mkdir()
    write_coco(labels, coco, objects)

    def refused(match, kind=LaunchError, source=labels, **options):
        with pytest.raises(kind, match=match) as caught:
            new_project(images, tmp_path / 'mine', CONFIGS, source, **options)
        assert '\n' not in str(caught.value)
        assert not (tmp_path / 'mine').exists()

    refused('no object is called cat; there are .*circle', classes=['circle', 'cat'])
    refused('no such setting; there are data_root', settings=dict(epoch=3))
    refused(r'1 group\(s\) of images \(\.\) leave training or validation empty', group='folder')
    refused('no file groups.csv', group='groups.csv')
    refused('no such group; there are', val=['nobody'])
    refused('gives 6 of 6 images no group', group='photo_(.*)')
    refused('no file or folder', FileNotFoundError, tmp_path / 'nothing')
    (tmp_path / 'notes').mkdir()
    (tmp_path / 'notes/readme.txt').write_text('no labels')
    refused('no annotations; expected those of one of COCO, Pascal', source=tmp_path / 'notes')
    # What only the written config shows leaves nothing behind either.
    refused('cannot be read as a config', settings=dict(epochs='three'))
    other = dict(coco, images=[dict(e, file_name=f'x{e["file_name"]}') for e in coco['images']])
    (tmp_path / 'other.json').write_text(json.dumps(other))
    refused('none of the 1 annotation files .COCO. is of any', source=tmp_path / 'other.json')
    (labels / '0.json').write_text('{"images": [{}], "annotations": [], "categories": []}')
    refused("0.json is not a whole COCO file: KeyError: 'id'")
    for key in ('image_id', 'category_id'):
        wrong = dict(coco['annotations'][0], **{key: 555})
        (tmp_path / 'wrong.json').write_text(json.dumps(dict(coco, annotations=[wrong])))
        refused(f'annotation 1 has {key} 555, and there is none', source=tmp_path / 'wrong.json')


@pytest.mark.parametrize(
    'line',
    ['0 0.5 0.5', '0 0.5 0.5 0.2 0.2 0.9', '0 0.5 0.5 0.2 0.2 0.9 0.3 0.5'],
    ids=['short', 'with a score', 'half a corner'],
)
@pytest.mark.parametrize('before', ['', '0 0.5 0.5 0.2 0.2\n'])
def test_lines_that_are_no_yolo_are_refused(drawn, line, before, tmp_path):
    pytest.importorskip('supervision')
    root, coco, objects = drawn
    write_yolo(tmp_path, coco, objects)
    name = min(objects)
    (tmp_path / name).with_suffix('.txt').write_text(before + line)
    number, count = 1 + bool(before), len(line.split())
    with pytest.raises(LaunchError, match=f'000000.txt, line {number}, has {count} numbers; expec'):
        new_project(root / 'images/training', tmp_path / 'mine', CONFIGS, tmp_path)


def test_files_without_a_partner_are_named(drawn, tmp_path):
    pytest.importorskip('supervision')
    root, coco, objects = drawn
    (tmp_path / 'labels').mkdir()
    write_yolo(tmp_path / 'labels', coco, objects)
    (tmp_path / 'labels/000000.txt').rename(tmp_path / 'labels/other.txt')
    project = new_project(root / 'images/training', tmp_path / 'mine', CONFIGS, tmp_path / 'labels')
    assert '1 annotation files of no image, left out: other.txt' in project.notes
    assert '1 images without annotations, left out: 000000.jpg' in project.notes


def test_a_split_never_divides_a_group(tmp_path):
    names = [f'{"abcde"[i % 5]}/photo{i % 7}_{x}_{y}.png' for i in range(7) for x in (0, 200)
             for y in (0, 200)]  # fmt: skip
    assert looks_tiled(names)
    for rule, key in (
        ('folder', lambda name: name[0]),
        (r'(photo\d)_', lambda name: name[2:8]),
    ):
        groups = find_groups(names, rule)
        held = hold_out(groups, '0.3')
        assert 0 < len(held) < len(set(groups.values()))
        assert {groups[name] for name in names} == {key(name) for name in names}
        assert sum(groups[name] in held for name in names) <= 0.3 * len(names)
    with (tmp_path / 'groups.csv').open('w') as file:
        csv.writer(file).writerows((name, name[0]) for name in names)
    assert find_groups(names, str(tmp_path / 'groups.csv')) == find_groups(names, 'folder')
    assert hold_out(find_groups(names, 'folder'), ['a', 'b']) == {'a', 'b'}
    assert not looks_tiled([f'IMG_{20190501 + i}_{123456 + i}.jpg' for i in range(9)])
    assert not looks_tiled([f'cell{i:04d}.png' for i in range(9)])


def test_the_command_says_what_comes_next(drawn, tmp_path):
    """And that tiles of one photograph stand on both sides of a split without groups."""
    root, coco, objects = drawn
    (tmp_path / 'tiles').mkdir()
    new = {name: f'photo_{i // 2}_{i % 2}.png' for i, name in enumerate(sorted(objects))}
    for name, tile in new.items():
        image = cv2.imread(str(root / 'images/training' / name))
        assert np.any(image)
        cv2.imwrite(str(tmp_path / 'tiles' / tile), image)
    tiles = [dict(entry, file_name=new[entry['file_name']]) for entry in coco['images']]
    (tmp_path / 'labels.json').write_text(json.dumps(dict(coco, images=tiles)))
    done = run_tool('new_project.py', 'tiles', 'mine', '--annotations', 'labels.json', '--boxes',
                    '--set', 'epochs=2', cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert 'WARNING: images named photo... look like tiles' in done.stdout
    assert f'python {ROOT}/tools/train.py mine/mine_atss.py\n' in done.stdout
    again = run_tool(
        'new_project.py', 'tiles', 'mine', '--annotations', 'labels.json', cwd=tmp_path
    )
    assert again.returncode == 2
    assert 'mine exists and is not empty' in again.stderr
