"""Faults put into a drawn data set, each of them found, counted and named."""

import cv2
import numpy as np
import pytest
from mmcv.transforms import BaseTransform
from mmengine.config import Config
from mmengine.registry import TRANSFORMS
from PIL import Image

from mmivit.apis.check_data import check_datasets
from mmivit.errors import LaunchError
from tests.conftest import run_tool
from tests.faulty_data import (
    BOXES,
    COCO,
    DETECTION,
    IMAGES,
    LABELS,
    SEGMENTATION,
    TRAIN,
    VALIDATION,
    check,
    found,
    header_of_png,
    rename,
)


def test_sound_sets_from_another_directory_end_with_zero(workspace, tmp_path):
    elsewhere = tmp_path / 'elsewhere'
    elsewhere.mkdir()
    root = f'data_root={workspace}/data/shapes/'
    for config in (DETECTION, SEGMENTATION):
        options = [f'{split}_dataloader.dataset.{root}' for split in ('train', 'val', 'test')]
        if config == DETECTION:
            done = run_tool('check_data.py', config, '--cfg-options', *options, cwd=elsewhere)
            assert done.returncode == 2  # the evaluator's file is named apart
            assert 'val_evaluator.ann_file: no file data/shapes/' in done.stderr
            file = f'ann_file={workspace}/{VALIDATION}'
            options += [f'{split}_evaluator.{file}' for split in ('val', 'test')]
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
    path(8).with_name('._000008.png').touch()  # a Mac's, which mmseg passes over
    kind = 'label maps without an image'
    assert found(check(SEGMENTATION), kind) == (1, f'{LABELS}/000009.png')


def test_labels_without_reduce_zero_label(workspace):
    report = check(SEGMENTATION, **{'train_dataloader.dataset.reduce_zero_label': False})
    assert ': 6' in found(report, 'none of the 6 classes')[1]


def test_a_folder_without_images_of_the_suffix(workspace):
    report = check(SEGMENTATION, **{'train_dataloader.dataset.img_suffix': '.jpeg'})
    assert found(report, 'without an image named *.jpeg')[1].endswith("holds {'.jpg': 16}")
    assert len(report.problems) == 1
