"""What is checked around mmdet's and mmseg's inferencers. The networks are tested elsewhere."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmseg.datasets import ADE20KDataset

from mmivit.apis import inferencers, large_images
from mmivit.apis.inferencers import Segmentor, load_inferencer
from mmivit.apis.models import build_model
from mmivit.errors import CheckpointError, LaunchError
from tests.apis.test_large_images import small_upernet
from tests.conftest import CONFIGS, prepared, sample_of

WEIGHTS = dict(weight=torch.zeros(1, 1), bias=torch.zeros(1))


@pytest.fixture
def load(tmp_path, monkeypatch):
    """load_inferencer() of a checkpoint's content, with a network of one layer."""
    engine = lambda *args, **kwargs: SimpleNamespace(model=torch.nn.Linear(1, 1))  # noqa: E731
    monkeypatch.setattr(inferencers, '_inferencer_class', lambda scope: engine)

    def load(content):
        torch.save(content, tmp_path / 'x.pth')
        cfg = Config(dict(default_scope='mmdet', test_dataloader=dict(dataset=dict())))
        return load_inferencer(cfg, str(tmp_path / 'x.pth'), 'cpu')

    return load


@pytest.mark.parametrize(
    'meta',
    [
        [1],
        dict(classes=[dict()]),
        dict(classes=5),
        dict(palette=[[1, 2]]),
        dict(palette=[[999, 0, 0]]),
    ],
)
def test_forged_classes_are_refused(meta, load):
    with pytest.raises(CheckpointError, match=r'x\.pth: its meta\.dataset_meta'):
        load(dict(state_dict=WEIGHTS, meta=dict(dataset_meta=meta)))


@pytest.mark.parametrize('meta', [None, {}, dict(classes=('a', 'b'), palette='random')])
def test_sound_classes_are_taken(meta, load):
    assert load(dict(state_dict=WEIGHTS, meta=dict(dataset_meta=meta)))[1] == (meta or {})


@pytest.mark.parametrize('bias', [{}, dict(bias=torch.zeros(2))])
def test_weights_of_another_model_are_refused(bias, load):
    with pytest.raises(CheckpointError, match=r'x\.pth: it is of another model: 1 of the 2.*bias'):
        load(dict(state_dict=dict(weight=torch.zeros(1, 1), **bias)))


def test_a_backbone_that_refuses_weights_names_their_file(tmp_path):
    """Nothing at all fits: the model's own loading says so first, and knows no file."""
    torch.save(dict(state_dict=WEIGHTS), tmp_path / 'x.pth')
    with pytest.raises(CheckpointError, match=r'x\.pth: IViT: none of the loaded tensors'):
        load_inferencer(
            Config.fromfile(CONFIGS / 'upernet_ivit_shapes.py'), str(tmp_path / 'x.pth'), 'cpu'
        )


def test_images_are_not_loaded_by_pickle(tmp_path):
    cfg = Config.fromfile(CONFIGS / 'upernet_ivit_shapes.py')
    torch.save(build_model(cfg).state_dict(), tmp_path / 'x.pth')
    loader = dict(type='LoadBiomedicalImageFromFile', decode_backend='pickle')
    cfg.test_dataloader.dataset.pipeline[0] = loader
    with pytest.raises(LaunchError, match=r'FromFile\(.*pickle.* set another decode_backend'):
        load_inferencer(cfg, str(tmp_path / 'x.pth'), 'cpu')


def test_without_test_data_images_are_loaded_as_for_validation(tmp_path):
    cfg = Config.fromfile(CONFIGS / 'mask_rcnn_ivit_shapes.py')
    torch.save(build_model(cfg).state_dict(), tmp_path / 'x.pth')
    cfg.test_dataloader = None
    inferencer, _ = load_inferencer(cfg, str(tmp_path / 'x.pth'), 'cpu')
    sample = sample_of(np.zeros((64, 64, 3), np.uint8))
    assert inferencer.pipeline(sample)['inputs'].shape[1:] == (128, 128)
    cfg.test_dataloader = cfg.val_dataloader = None
    with pytest.raises(LaunchError, match='neither test_dataloader nor val_dataloader'):
        load_inferencer(cfg, str(tmp_path / 'x.pth'), 'cpu')


def test_another_scope_is_refused(tmp_path):
    with pytest.raises(LaunchError, match='must be mmdet or mmseg'):
        load_inferencer(Config(dict(default_scope='mmpretrain')), str(tmp_path / 'x.pth'))


def test_ade20k_checkpoints_show_ade20k_whether_or_not_they_say_so(tmp_path):
    cfg, model = small_upernet(mode='whole')
    torch.save(dict(state_dict=model.state_dict(), meta={}), tmp_path / 'plain.pth')
    segmentor = Segmentor(cfg, str(tmp_path / 'plain.pth'), 'cpu')
    assert tuple(segmentor.classes) == ADE20KDataset.METAINFO['classes']
    assert list(segmentor.palette) == ADE20KDataset.METAINFO['palette']


def test_sliding_over_a_padded_image_gives_the_labels_of_stock_inference(monkeypatch, tmp_path):
    cfg, model = small_upernet(mode='slide', crop_size=(64, 64), stride=(43, 43))
    cfg.model.data_preprocessor.test_cfg = dict(size_divisor=64)
    cfg.test_pipeline = [step for step in cfg.test_pipeline if step.type != 'Resize']
    cfg.test_dataloader.dataset.pipeline = cfg.test_pipeline
    torch.save(dict(state_dict=model.state_dict(), meta={}), tmp_path / 'x.pth')
    segmentor = Segmentor(cfg, str(tmp_path / 'x.pth'), 'cpu')
    image = np.random.default_rng(0).integers(0, 255, (100, 75, 3), np.uint8)
    stock = segmentor.inferencer(sample_of(image), return_datasamples=True)
    monkeypatch.setattr(large_images, 'MAX_LOGITS', 0)
    labels = segmentor.label_maps([prepared(segmentor.pipeline, image)])[0]
    same = labels == stock.pred_sem_seg.data[0].numpy()
    assert same.mean() > 0.999  # near-ties may fall either way


@pytest.mark.parametrize(
    ('shape', 'factor'), [((30, 40), 16), ((480, 9), 8), ((1, 20_000), 1), ((2000, 3000), 1)]
)
def test_small_pictures_are_enlarged_but_not_without_end(shape, factor):
    assert inferencers._enlargement(*shape) == factor
