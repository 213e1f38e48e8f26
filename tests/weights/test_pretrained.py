"""A backbone that starts from a file, as a config asks for it."""

import re

import pytest
import timm
import torch

from mmivit.errors import CheckpointError
from mmivit.models import IViT
from mmivit.weights.agreement import agreement, smooth_images
from mmivit.weights.pretrained import PretrainedIViT
from tests.weights.states import equal, prefixed, randomise, small_caformer


@pytest.mark.parametrize('attention', ['imhsa', 'mhsa'])
@pytest.mark.parametrize('channels', [1, 3, 4])
def test_a_backbone_starts_from_caformer(attention, channels, folder, log):
    caformer = small_caformer()
    torch.save(dict(state_dict=caformer.state_dict()), 'caformer.pth')
    init_cfg = dict(type='mmivit.PretrainedIViT', checkpoint='caformer.pth')
    model = IViT('nano', in_channels=channels, attention=attention, init_cfg=init_cfg)
    model.init_weights()
    expected = caformer.state_dict()['stages.3.blocks.1.token_mixer.qkv.weight']
    assert torch.equal(model.stages[3].blocks[1].token_mixer.qkv.weight, expected)
    report = next(line for line in log if line.startswith('caformer.pth'))
    assert 'caformer -> backbone, iViT nano' in report


def test_mmengines_table_says_what_was_loaded(folder, log):
    state = randomise(IViT('nano')).state_dict()
    torch.save(state, 'x.pth')
    init_cfg = dict(type='mmivit.PretrainedIViT', checkpoint='x.pth')
    IViT('nano', init_cfg=init_cfg).init_weights()
    table = '\n'.join(log)
    line = 'PretrainedIViT: load from x.pth'
    assert re.search(rf'stages\.3\.blocks\.1\.mlp\.fc1\.weight - .*\n{line}', table)
    assert 'The value is the same before and after' not in table


@pytest.mark.parametrize('paper_start', [False, True])
@pytest.mark.parametrize('attention', ['imhsa', 'decomposed', 'mhsa'])
@pytest.mark.parametrize('source', ['caformer', 'mhsa', 'imhsa'])
def test_how_a_converted_backbone_stands_is_logged(source, attention, paper_start, folder, log):
    caformer = source == 'caformer'
    state = small_caformer() if caformer else randomise(IViT('nano', attention=source))
    torch.save(state.state_dict(), 'source.pth')
    model = IViT('nano', in_channels=4, attention=attention).train()
    stream = torch.get_rng_state()
    PretrainedIViT('source.pth', paper_start=paper_start)(model)
    assert torch.equal(torch.get_rng_state(), stream)  # so that resumption stays exact
    assert all(module.training for module in model.modules())
    lines = [re.findall(r'(\d\.\d+) in stage (\d)', line) for line in log if 'synthetic' in line]
    if source == 'imhsa' or attention == 'mhsa':
        assert not lines
        return
    ((third, fourth),) = lines
    images = smooth_images(2, 4, 224)
    expected = [(f'{e.error:.3f}', stage) for e, stage in zip(agreement(model, images), '34')]
    assert [third, fourth] == expected


def test_processes_but_the_first_leave_it_to_the_first(folder, log, monkeypatch):
    monkeypatch.setattr('mmivit.weights.pretrained.is_main_process', lambda: False)
    torch.save(small_caformer().state_dict(), 'source.pth')
    PretrainedIViT('source.pth')(IViT('nano'))
    assert not any('synthetic' in line for line in log)


def test_a_backbone_starts_from_a_detectors(folder):
    source = randomise(IViT('nano', interaction='both'))
    torch.save(prefixed(source.state_dict()), 'detector.pth')
    model = IViT('nano', interaction='both', out_indices=(1, 2))
    PretrainedIViT('detector.pth')(model)
    assert equal(model.state_dict(), {n: source.state_dict()[n] for n in model.state_dict()})


@pytest.mark.parametrize('source', ['post', 'both', None])
@pytest.mark.parametrize('wanted', ['pre', 'post', 'both'])
def test_any_interaction_starts_from_any(source, wanted, folder):
    options = dict(interaction=source) if source else dict(attention='mhsa')
    state = randomise(IViT('nano', **options)).state_dict()
    torch.save(state, 'source.pth')
    model = IViT('nano', interaction=wanted)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    PretrainedIViT('source.pth')(model)
    if source is None:  # whole maps: landmarks start so that the function is kept
        for name, tensor in before.items():
            if name.endswith(('.content', '.locality')):
                tensor.fill_(2 if name.endswith('.locality') else 0)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state.get(name, before[name])), name


@pytest.mark.parametrize('source', ['imhsa', 'mhsa'])
def test_without_a_start_of_their_own_landmarks_are_the_papers(source, folder):
    """Files from before the two, and ``paper_start``, whatever the backbone held."""
    state = randomise(IViT('nano', attention=source)).state_dict()
    landmarks = ('.content', '.locality')
    torch.save({n: t for n, t in state.items() if not n.endswith(landmarks)}, 'source.pth')
    model = randomise(IViT('nano'))
    PretrainedIViT('source.pth', paper_start=source == 'mhsa')(model)
    values = {n: t for n, t in model.state_dict().items() if n.endswith(landmarks)}
    assert len(values) == 12
    for name, tensor in values.items():
        assert tensor.tolist() == [float(name.endswith('.content'))] * len(tensor), name


@pytest.mark.parametrize('attention', ['imhsa', 'mhsa'])
def test_heads_of_another_width_are_refused(attention, folder):
    torch.save(IViT('nano', head_dim=16).state_dict(), 'narrow.pth')
    with pytest.raises(CheckpointError, match='its heads are 16 wide: expected 32'):
        PretrainedIViT('narrow.pth')(IViT('nano', attention=attention))
    torch.save(small_caformer().state_dict(), 'caformer.pth')
    with pytest.raises(CheckpointError, match='its heads are 32 wide: expected 16'):
        PretrainedIViT('caformer.pth')(IViT('nano', attention=attention, head_dim=16))


@pytest.mark.parametrize(
    ('trained', 'asked', 'stored', 'said'),
    [
        (dict(attention='mhsa', head_dim=16), {}, True, 'head_dim is 32 here, 16 in it'),
        (dict(attention='mhsa'), dict(head_dim=16), False, 'nothing in it tells its head_dim'),
        (dict(interaction='post'), dict(interaction='pre'), True, "is 'pre' here, 'post' in it"),
        (dict(interaction='pre'), {}, True, "is 'post' here, 'pre' in it"),
        (dict(interaction='both'), {}, False, "is 'post' here, 'both' in it"),
        (dict(interaction='pre'), dict(interaction='both'), True, "is 'post' here, 'pre' in it"),
        ({}, dict(interaction='pre'), False, 'nothing in it tells its interaction'),
        ({}, dict(interaction='both'), True, None),
        ({}, dict(interaction='both'), False, None),
        (dict(interaction='pre', head_dim=16), dict(interaction='pre', head_dim=16), True, None),
        (dict(attention='mhsa', landmarks=5), {}, True, None),
        ({}, {}, False, None),
    ],
)
def test_weights_that_mean_something_else_are_said_to(trained, asked, stored, said, folder, log):
    backbone = dict(type='mmivit.IViT', arch='nano', **trained)
    meta = dict(cfg=f'model = dict(detector={backbone})\n') if stored else {}
    torch.save(dict(state_dict=IViT('nano', **trained).state_dict(), meta=meta), 'x.pth')
    PretrainedIViT('x.pth')(IViT('nano', **asked))
    doubts = [line for line in log if line.startswith('x.pth: ')]
    assert len(doubts) == bool(said)
    assert not said or said in doubts[0]


def test_weights_of_another_architecture_are_refused(folder):
    torch.save(IViT('tiny').state_dict(), 'tiny.pth')
    for arch in ('nano', 'small'):
        with pytest.raises(CheckpointError, match=r'iViT tiny and do not fit.*init_cfg=None'):
            PretrainedIViT('tiny.pth')(IViT(arch))


def test_no_interaction_is_made_for_a_backbone_without(folder, log):
    torch.save(randomise(IViT('nano')).state_dict(), 'source.pth')
    model = IViT('nano', attention='decomposed')
    PretrainedIViT('source.pth')(model)
    assert equal(
        model.state_dict(),
        {n: t for n, t in torch.load('source.pth').items() if '.interaction' not in n},
    )
    report = next(line for line in log if line.startswith('source.pth'))
    assert 'missing        0' in report


def test_timms_weights_are_taken_from_timm(folder, monkeypatch):
    """The hub is out of reach here: timm's own creation of the model stands for it."""
    model, create = randomise(timm.create_model('caformer_s18')), timm.create_model
    asked = []

    def pretrained(name, pretrained):
        asked.append((name, pretrained))
        return model

    monkeypatch.setattr(timm, 'create_model', pretrained)
    backbone = IViT('tiny')
    PretrainedIViT('timm://caformer_s18.sail_in22k_ft_in1k')(backbone)
    assert asked == [('caformer_s18.sail_in22k_ft_in1k', True)]
    expected = model.state_dict()['stages.0.blocks.0.mlp.fc1.weight'][:, :, 0, 0]
    assert torch.equal(backbone.stages[0].blocks[0].mlp.fc1.weight, expected)
    monkeypatch.setattr(timm, 'create_model', create)


def test_without_network_the_way_on_is_named(folder, monkeypatch):
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    name = 'caformer_s18.sail_in22k_ft_in1k'
    with pytest.raises(CheckpointError) as error:
        PretrainedIViT(f'timm://{name}')(IViT('tiny'))
    assert f'tools/convert_weights.py timm://{name} {name}.pth' in str(error.value)
    assert '--cfg-options model.backbone.init_cfg=None' in str(error.value)
