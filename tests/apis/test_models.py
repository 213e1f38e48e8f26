"""Models of configs: built, and loaded with weights that are theirs."""

import copy

import pytest
import torch
from mmengine.config import Config

from mmivit.apis.config import read_config
from mmivit.apis.models import build_model, check_weights, load_model, read_loadable
from mmivit.errors import CheckpointError, LaunchError
from mmivit.models.loading import check_fits
from tests.conftest import CONFIGS

DETECTOR = read_config(str(CONFIGS / 'mask_rcnn_ivit_shapes.py'))
SEGMENTOR = read_config(str(CONFIGS / 'upernet_ivit_shapes.py'))


@pytest.mark.parametrize('cfg', [DETECTOR, SEGMENTOR])
def test_a_model_is_built_whichever_scope_was_left_behind(cfg):
    for _ in range(2):
        model = build_model(cfg, 'meta')
        assert not model.training
        assert 'SyncBatchNorm' not in str(model)
        build_model(SEGMENTOR if cfg is DETECTOR else DETECTOR, 'meta')


@pytest.mark.parametrize('scope', [None, 'mmpretrain'])
def test_a_scope_of_neither_package_is_refused(scope):
    cfg = Config(dict(default_scope=scope, model=dict(type='ImageClassifier')))
    with pytest.raises(LaunchError, match='must be mmdet or mmseg'):
        build_model(cfg)


@pytest.fixture(scope='module')
def weights():
    return build_model(SEGMENTOR).state_dict()


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_weights_are_loaded_with_the_names_of_the_classes(suffix, weights, tmp_path):
    path = tmp_path / f'x{suffix}'
    if suffix == '.pth':
        meta = dict(dataset_meta=dict(classes=('a', 'b')))
        torch.save(dict(state_dict=weights, meta=meta), path)
    else:
        from safetensors.torch import save_file

        meta = {}
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)
    model, found = load_model(SEGMENTOR, str(path))
    assert found == meta.get('dataset_meta', {})
    loaded = model.state_dict()
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)
    assert not model.training


@pytest.mark.parametrize('attention', ['imhsa', 'decomposed'])
def test_a_detector_from_before_content_and_locality_has_the_papers_map(attention, tmp_path):
    cfg = copy.deepcopy(DETECTOR)
    cfg.model.backbone.attention = attention
    model = build_model(cfg)
    own = {n: t for n, t in model.state_dict().items() if n.endswith(('.content', '.locality'))}
    state_dict = {name: t for name, t in model.state_dict().items() if name not in own}
    assert len(own) == 12
    torch.save(dict(state_dict=state_dict), tmp_path / 'before.pth')
    for tensor in own.values():
        tensor.uniform_(2, 3)
    check_fits(model, state_dict)
    model.load_state_dict(state_dict, strict=False)
    for loaded in (model, load_model(cfg, str(tmp_path / 'before.pth')).model):
        for name in own:
            assert (loaded.get_parameter(name) == float(name.endswith('.content'))).all(), name
    missing = {name: t for name, t in state_dict.items() if not name.endswith('proj.weight')}
    with pytest.raises(CheckpointError, match=r'another model: 6 of .*token_mixer\.proj'):
        check_fits(model, missing)


def test_what_does_not_fit_is_refused_by_name(weights, tmp_path):
    path = tmp_path / 'x.pth'
    with pytest.raises(LaunchError, match=r'checkpoint: no file .*x\.pth'):
        load_model(SEGMENTOR, str(path))
    torch.save(weights, path)
    with pytest.raises(CheckpointError, match=r'x\.pth: it is of another model: \d+ of the'):
        load_model(DETECTOR, str(path))
    part = {name: w for name, w in weights.items() if not name.startswith('decode_head')}
    torch.save(part, path)
    with pytest.raises(CheckpointError, match=r'x\.pth: .*EncoderDecoder are missing.*decode_head'):
        load_model(SEGMENTOR, str(path))
    training_alone = {n: w for n, w in weights.items() if not n.startswith('auxiliary_head')}
    torch.save(training_alone, path)
    load_model(SEGMENTOR, str(path))
    path.write_text('words')
    with pytest.raises(CheckpointError, match=r'x\.pth was not loaded: it seems to be a text file'):
        load_model(SEGMENTOR, str(path))


def test_what_mmengine_fetches_is_left_to_it():
    assert read_loadable('https://example.org/x.pth', 'checkpoint') is None
    for suffix in ('safetensors', 'SAFETENSORS', 'safetensors.index.json'):
        with pytest.raises(CheckpointError, match=r'loads \.pth files alone'):
            read_loadable(f'https://example.org/x.{suffix}', 'checkpoint')


@pytest.mark.parametrize('prefix', ['', 'module.', '_orig_mod.', 'module.module.'])
@pytest.mark.parametrize('key', ['state_dict', 'model', None])
def test_weights_that_mmengine_would_not_find_are_refused(prefix, key):
    model = torch.nn.Linear(1, 1)
    held = {f'{prefix}{name}': tensor for name, tensor in model.state_dict().items()}
    loaded = {key: held} if key else held
    if prefix in ('', 'module.') and key != 'model':
        check_weights(model, 'x.pth', loaded)
        return
    with pytest.raises(
        CheckpointError, match=r'x\.pth: MMEngine would not find weight, bias in it'
    ):
        check_weights(model, 'x.pth', loaded)
