"""What is found out about a config before anything is built from it."""

import numpy as np
import pytest
from mmengine.config import Config

from mmivit.apis.config import check_channels, check_paths, read_config
from mmivit.errors import LaunchError
from mmivit.models import IViT
from tests.conftest import CONFIGS, run_tool


def test_training_without_coco_says_what_to_do(tmp_path):
    done = run_tool('train.py', CONFIGS / 'mask_rcnn_ivit.py', cwd=tmp_path)
    assert done.returncode == 1
    assert 'Traceback' not in done.stderr
    for text in (
        'data/coco/annotations/instances_train2017.json',
        'data/coco/val2017/',
        'ln -s /where/it/is data/coco',
        'tools/make_shapes.py data/shapes',
    ):
        assert text in done.stderr
    assert not (tmp_path / 'work_dirs').exists()


def test_only_what_is_missing_is_called_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'data/coco/annotations').mkdir(parents=True)
    (tmp_path / 'data/coco/annotations/instances_val2017.json').touch()
    cfg = Config.fromfile(CONFIGS / 'mask_rcnn_ivit.py')
    with pytest.raises(LaunchError) as caught:
        check_paths(cfg, ('val',))
    assert 'ln -s' not in str(caught.value)  # it would be made within data/coco
    missing, expected = str(caught.value).split('Expected layout')
    assert 'val2017/' in missing
    assert 'instances_val2017.json' not in missing
    assert 'instances_val2017.json' in expected
    (tmp_path / 'data/coco/val2017').mkdir()
    check_paths(cfg, ('val',))


def test_wrapped_datasets_and_remote_paths(tmp_path):
    inner = dict(type='A', data_root=str(tmp_path), ann_file='a.json', data_prefix=dict(img=''))
    remote = dict(type='A', data_root='s3://bucket', ann_file='a.json')
    wrapped = dict(dataset=dict(type='Repeat', dataset=dict(type='Concat', datasets=[remote])))
    check_paths(Config(dict(train_dataloader=wrapped)), ('train',))
    wrapped['dataset']['dataset']['datasets'].append(inner)
    with pytest.raises(LaunchError, match=r'a\.json'):
        check_paths(Config(dict(train_dataloader=wrapped)), ('train',))


@pytest.mark.parametrize(
    ('options', 'paste'),
    [
        (dict(backbone=dict(arch='medium')), r'neck=dict\(in_channels=\[96, 192, 384, 576\]\)'),
        (dict(backbone=dict(out_indices=(1, 2, 3))), r'neck=dict\(in_channels=\[128, 320, 512\]\)'),
        (dict(backbone=dict(arch='huge')), "model.backbone: arch='huge'.*'nano'"),
        (dict(backbone=dict(landmark=7)), 'model.backbone.*landmark'),
    ],
)
def test_channels_that_do_not_fit_print_what_to_paste(options, paste):
    cfg = Config.fromfile(CONFIGS / 'mask_rcnn_ivit.py')
    cfg.merge_from_dict(dict(model=options))
    with pytest.raises(LaunchError, match=f'(?s){paste}'):
        check_channels(cfg)


def segmentor(**head):
    backbone = dict(type='mmivit.IViT', arch='nano')
    return Config(dict(model=dict(backbone=backbone, decode_head=head)))


def test_channels_of_segmentation_heads():
    check_channels(segmentor(in_channels=[32, 64, 128, 256], in_index=[0, 1, 2, 3]))
    check_channels(segmentor(in_channels=256))
    with pytest.raises(LaunchError, match=r'decode_head=dict\(in_channels=128\)'):
        check_channels(segmentor(in_channels=512, in_index=2))
    check_channels(segmentor(in_channels=[32, 64, 128, 256]))  # a head that takes all maps
    with pytest.raises(LaunchError, match='4 maps'):
        check_channels(segmentor(in_channels=512, in_index=4))


@pytest.mark.parametrize('name', sorted(p.name for p in CONFIGS.glob('*.py')))
def test_shipped_configs_pass_the_check(name):
    check_channels(Config.fromfile(CONFIGS / name))


@pytest.mark.parametrize('text', ['model = (', "_base_ = 'nowhere.py'", 'x = undefined'])
def test_what_is_no_config(text, tmp_path):
    (tmp_path / 'x.py').write_text(text)
    with pytest.raises(LaunchError, match=r'x\.py cannot be read as a config: \w+Error: '):
        read_config(str(tmp_path / 'x.py'))


@pytest.mark.parametrize('kind', ['mmivit.IViT', IViT])
def test_channels_within_wrappers(kind):
    cfg = Config.fromfile(CONFIGS / 'mask_rcnn_ivit.py')
    cfg.model.backbone.type = kind
    cfg.model = dict(type='SoftTeacher', detector=cfg.model)
    check_channels(cfg)
    cfg.model.detector.backbone.arch = 'medium'
    with pytest.raises(LaunchError, match=r'model\.detector\.neck\.in_channels is .*\n.*\[96, 192'):
        check_channels(cfg)


def binary(classes, channels, sigmoid, kind='mmseg.UPerHead'):
    loss = dict(type='mmseg.CrossEntropyLoss', use_sigmoid=sigmoid)
    head = dict(type=kind, num_classes=classes, loss_decode=[loss])
    head.update(dict(out_channels=channels) if channels else {})
    return Config(dict(model=dict(type='mmseg.EncoderDecoder', backbone={}, decode_head=head)))


def test_a_single_channel_tells_two_classes_apart():
    check_channels(binary(2, 1, True))
    check_channels(binary(2, None, False))
    check_channels(binary(1, None, False, 'mmseg.Mask2FormerHead'))  # has a class for none
    for classes, channels, sigmoid in [(1, None, True), (1, 1, True), (2, 1, False)]:
        with pytest.raises(
            LaunchError, match=r'(?s)one channel for .*num_classes=2, out_channels=1'
        ):
            check_channels(binary(classes, channels, sigmoid))


@pytest.mark.parametrize(
    ('option', 'told'),
    [
        (dict(data_root='x/'), 'test_dataloader.dataset.data_root, val_evaluator.ann_file, test_'),
        (dict(num_classes=3), 'stands: model.roi_head.bbox_head.num_classes, model.roi_head.mask_'),
        ({'metainfo.classes': ('a',)}, 'stands: train_dataloader.dataset.metainfo.classes, val_'),
        (dict(train_pipeline=[]), 'stands: train_dataloader.dataset.pipeline'),
        (dict(dataroot='x/'), 'reads dataroot'),
        ({'train_cfg.max_epochs': 1, 'tta_pipeline': [], 'sync_bn': 'torch', 'seed': 0}, 'seed'),
    ],
)
def test_options_that_nothing_reads(option, told, log):
    read_config(str(CONFIGS / 'mask_rcnn_ivit_shapes.py'), cfg_options=option)
    (message,) = log
    assert f'--cfg-options {list(option)[-1]}: neither MMEngine nor mmivit reads' in message
    assert told in message


def test_arrays_are_lists(tmp_path):
    path = tmp_path / 'x.py'
    path.write_text(
        '_base_ = []\n'
        'import numpy as np\n'
        'metainfo = dict(palette=np.eye(3, dtype=np.uint8), ids=(np.int64(3), [np.zeros(1)]))\n'
    )
    cfg = read_config(str(path))
    cfg.dump(str(path))
    for read in (cfg, Config.fromfile(path)):
        assert read.metainfo.palette == np.eye(3).tolist()
        assert read.metainfo.ids == (3, [[0.0]])
        assert type(read.metainfo.ids[0]) is int
