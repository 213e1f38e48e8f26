"""iViT in timm: timm's own contract tests, and the trunk against the backbone."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import timm.optim
import torch
from timm.models import group_parameters
from torch import nn

import mmivit  # noqa: F401 - registers the models
from mmivit.models import IViT
from tests.conftest import ROOT

NAMES = [f'ivit_{arch}' for arch in ('nano', 'tiny', 'small', 'medium', 'base')]
TIMM_TESTS = Path(sys.prefix, 'timm-tests')  # put there by `make setup`


@pytest.mark.skipif(not TIMM_TESTS.is_dir(), reason="timm's tests are fetched by `make setup`")
def test_timms_own_tests_of_models():
    """On the smallest model; `make test-timm` runs them on all five."""
    command = [sys.executable, '-m', 'pytest', '-p', 'tests.timm_only_ivit', '-q', '-W', 'ignore']
    command += ['-c', os.devnull, '--rootdir', str(TIMM_TESTS), '-p', 'no:cacheprovider']
    done = subprocess.run(
        [*command, '-k', 'ivit_nano and not torchscript', str(TIMM_TESTS / 'test_models.py')],
        cwd=ROOT,
        env={**os.environ, 'IVIT_MODELS': 'ivit_nano'},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    passed = int(re.search(r'(\d+) passed', done.stdout)[1])
    # forward, backward, configs, features, intermediates twice, prune, FX twice
    assert passed == 9
    assert 'skipped' not in done.stdout


@pytest.mark.parametrize('imports', ['timm, mmivit', 'mmivit, timm', 'mmdet, timm, mmivit'])
def test_models_are_there_once_mmivit_is_imported(imports, tmp_path):
    code = f"import {imports}\nprint(timm.list_models('ivit_*'), timm.is_model('ivit_tiny'))"
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split('\n')[-2] == f'{sorted(NAMES)} True'


def test_importing_mmivit_does_not_import_timm(tmp_path):
    code = "import sys, mmivit.models, mmivit.converters; print('timm' in sys.modules)"
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.strip() == 'False', done.stderr


@pytest.mark.parametrize('name', NAMES)
def test_the_trunk_is_the_backbones(name):
    with torch.device('meta'):
        model = timm.create_model(name, num_classes=7)
        backbone = IViT(name.removeprefix('ivit_'))
    trunk = {n: t.shape for n, t in model.state_dict().items() if not n.startswith('head.')}
    own = {n: t.shape for n, t in backbone.state_dict().items() if not n.startswith('norm')}
    assert trunk == own


def test_features_are_the_backbones():
    model = timm.create_model('ivit_nano', features_only=True).eval()
    backbone = IViT('nano').eval()
    backbone.load_state_dict(model.model.state_dict(), strict=False)
    image = torch.randn(2, 3, 97, 130)
    with torch.no_grad():
        for i, (own, found) in enumerate(zip(backbone(image), model(image))):
            norm = getattr(backbone, f'norm{i}')
            expected = norm(found.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            torch.testing.assert_close(own, expected)
    assert model.feature_info.channels() == backbone.out_channels
    assert model.feature_info.reduction() == backbone.out_strides


@pytest.mark.parametrize('feature_cls', ['list', 'dict', 'hook', 'getter', 'fx'])
def test_features_are_the_same_whichever_way_they_are_taken(feature_cls):
    options = dict(features_only=True, out_indices=(1, 3))
    torch.manual_seed(0)
    expected = timm.create_model('ivit_nano', **options).eval()
    found = timm.create_model('ivit_nano', feature_cls=feature_cls, **options).eval()
    weights = expected.model.state_dict()

    def plain(name):  # timm's wrappers rename what they wrap
        return re.sub(r'^stages_', 'stages.', re.sub(r'^(model|body|graph_module)\.', '', name))

    found.load_state_dict({name: weights[plain(name)] for name in found.state_dict()})
    image = torch.randn(2, 3, 97, 130)
    with torch.no_grad():
        maps = found(image)
        maps = list(maps.values()) if feature_cls == 'dict' else maps
        for one, other in zip(expected(image), maps, strict=True):
            torch.testing.assert_close(one, other)  # (B, C, H, W)


@pytest.mark.parametrize('stride', [8, 16, 32])
def test_output_stride(stride):
    model = timm.create_model('ivit_nano', features_only=True, output_stride=stride).eval()
    assert model.feature_info.reduction() == [min(4 * 2**i, stride) for i in range(4)]
    for features, reduction in zip(
        model(torch.randn(1, 3, 64, 96)), model.feature_info.reduction()
    ):
        assert features.shape[-2:] == (64 // reduction, 96 // reduction)


@pytest.mark.parametrize('pool', ['avg', 'max', 'avgmax', ''])
@pytest.mark.parametrize('in_chans', [1, 4])
def test_channels_and_pooling(in_chans, pool):
    model = timm.create_model('ivit_nano', in_chans=in_chans, global_pool=pool, num_classes=5)
    shape = (2, 5) if pool else (2, 5, 2, 3)
    assert model(torch.randn(2, in_chans, 64, 96)).shape == shape


def test_options_of_the_attention():
    model = timm.create_model('ivit_nano', attention='decomposed', landmarks=3)
    assert model.stages[3].blocks[0].token_mixer.landmarks == 3
    assert len(model.no_weight_decay()) == 2 * (4 + 2)  # content and locality
    with pytest.raises(ValueError, match='attention='):
        timm.create_model('ivit_nano', attention='full')


def test_no_weight_decay_names_interaction_content_and_locality():
    model = timm.create_model('ivit_nano')
    expected = {
        name
        for name, parameter in model.named_parameters()
        if (parameter.ndim == 2 and torch.equal(parameter, torch.eye(len(parameter))))
        or name.endswith(('.content', '.locality'))
    }
    assert model.no_weight_decay() == expected
    assert len(expected) == 4 * (4 + 2)  # of two maps in each block of stages 3 and 4


@pytest.mark.parametrize('flat', [True, False])  # whether all that is flat is left out
@pytest.mark.parametrize('layer_decay', [None, 0.9])
def test_timms_optimisers_do_not_decay_them(flat, layer_decay):
    model = timm.create_model('ivit_nano')
    optimizer = timm.optim.create_optimizer_v2(
        model,
        'adamw',
        lr=1e-3,
        weight_decay=0.05,
        filter_bias_and_bn=flat,
        layer_decay=layer_decay,
    )
    decay = {id(p): g['weight_decay'] for g in optimizer.param_groups for p in g['params']}
    assert decay[id(model.stem.conv.weight)] == 0.05
    assert not any(decay[id(model.get_parameter(name))] for name in model.no_weight_decay())


def test_layer_groups_agree_with_the_backbones_depth():
    model, backbone = timm.create_model('ivit_nano'), IViT('nano')
    groups = group_parameters(model, model.group_matcher(), reverse=True)
    names = [name for name in groups if not name.startswith('head')]
    assert sorted(groups) == sorted(name for name, _ in model.named_parameters())
    assert [groups[n] for n in names] == [backbone.get_layer_depth(n)[0] for n in names]


def test_gradient_checkpointing_changes_nothing():
    torch.manual_seed(0)
    model, image = timm.create_model('ivit_nano'), torch.randn(2, 3, 64, 64)
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(image).square().mean().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for plain, recomputed in zip(*gradients):
        torch.testing.assert_close(plain, recomputed)


def test_there_are_no_pretrained_weights():
    assert not timm.list_models('ivit_*', pretrained=True)
    assert all(not timm.get_pretrained_cfg(name).has_weights for name in NAMES)
    with pytest.raises(RuntimeError, match=r'[Nn]o pretrained'):
        timm.create_model('ivit_nano', pretrained=True)


def test_a_new_classifier():
    model = timm.create_model('ivit_nano')
    model.reset_classifier(3, 'max')
    assert isinstance(model.get_classifier(), nn.Linear)
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 3)
