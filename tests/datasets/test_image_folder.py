"""Folders of images: what is found, in which order, and what becomes of files that are none."""

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS

from mmivit.apis.check_data import check_datasets
from mmivit.datasets.image_folder import check_readable
from mmivit.errors import LaunchError
from tests.conftest import CONFIGS

PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(type='torchvision/ToImage'),
    dict(type='torchvision/CenterCrop', size=16),
]


@pytest.fixture
def folder(tmp_path):
    for number, name in enumerate(('b/two/0.png', 'b/1.JPG', 'a/2.png')):
        path = tmp_path / 'images' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((40, 48, 3), 50 * number, np.uint8))
    (tmp_path / 'images/notes.txt').write_text('no image')
    (tmp_path / 'images/a/._2.png').write_text('of a Mac')
    return tmp_path / 'images'


def build(folder, **options):
    config = dict(type='mmivit.ImageFolder', data_root=str(folder), pipeline=PIPELINE, **options)
    return DATASETS.build(config)


def names(dataset, folder):
    paths = [dataset.get_data_info(i)['img_path'] for i in range(len(dataset))]
    return [path.removeprefix(f'{folder}/') for path in paths]


def test_images_at_any_depth_are_found_and_transformed(folder):
    dataset = build(folder)
    assert names(dataset, folder) == ['a/2.png', 'b/1.JPG', 'b/two/0.png']
    sample = dataset[0]
    assert sample['inputs'].shape == (3, 16, 16)
    assert type(sample['inputs']) is torch.Tensor
    assert sample['inputs'].unique().tolist() == [100]
    assert sample['data_samples'].img_path == f'{folder}/a/2.png'
    assert 'label' not in sample['data_samples']


def test_folders_are_classes_where_asked_for(folder):
    dataset = build(folder, labelled=True)
    assert dataset.metainfo['classes'] == ('a', 'b')
    assert [dataset[i]['data_samples'].label for i in range(3)] == [0, 1, 1]
    (folder / 'beside.png').write_bytes((folder / 'a/2.png').read_bytes())
    with pytest.raises(LaunchError, match=r'1 images are in none: .*beside\.png'):
        build(folder, labelled=True)


@pytest.mark.parametrize('test_mode', [False, True])
def test_an_unreadable_image_is_named_and_the_next_one_taken(test_mode, folder, log):
    (folder / 'a/2.png').write_bytes((folder / 'a/2.png').read_bytes()[:40])
    dataset = build(folder, test_mode=test_mode)
    for _ in range(2):
        assert dataset[0]['data_samples'].img_path == f'{folder}/b/1.JPG'
    (told,) = [message for message in log if 'cannot be read' in message]
    assert f'{folder}/a/2.png cannot be read' in told
    assert '1 of 3' in told
    check_readable(dataset)
    for name in names(dataset, folder):
        (folder / name).write_text('no image')
    with pytest.raises(LaunchError, match='none of 3 images that were tried'):
        check_readable(dataset)


def test_folders_without_images_are_refused(tmp_path):
    for name, said in (('.', 'holds no image'), ('absent', r'no folder .*absent')):
        with pytest.raises(LaunchError, match=said) as error:
            build(tmp_path / name)
        assert '\n' not in str(error.value)


def test_check_data_reads_every_image(folder):
    (folder / 'a/2.png').write_bytes((folder / 'a/2.png').read_bytes()[:40])
    config = folder.parent / 'config.py'
    config.write_text(
        f'train_dataloader = dict(dataset=dict(type="mmivit.ImageFolder", '
        f'data_root={str(folder)!r}, pipeline={PIPELINE!r}))\n'
        "custom_imports = dict(imports=['mmivit'])\ndefault_scope = 'mmengine'\n"
    )
    (report,) = check_datasets(str(config))
    assert report.images == 3
    assert sum(report.problems.values()) == 1
    assert f'{folder}/a/2.png' in str(report)


@pytest.mark.parametrize('pipeline', ['train_pipeline', 'test_pipeline'])
def test_the_shipped_pipelines_give_images_of_one_size(pipeline, folder):
    steps = Config.fromfile(CONFIGS / 'distill_ivit.py')[pipeline]
    dataset = DATASETS.build(dict(type='mmivit.ImageFolder', data_root=str(folder), pipeline=steps))
    sample = dataset[1]['inputs']
    assert sample.shape == (3, 224, 224)
    assert sample.dtype == torch.uint8
