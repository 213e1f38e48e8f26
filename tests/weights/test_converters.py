"""Conversions against the models the weights come from."""

import os
import pickle
import re
from argparse import Namespace

import pytest
import timm
import torch
from mmengine.config import Config
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from timm.models import adapt_input_conv

from mmivit.errors import CheckpointError
from mmivit.models import IViT
from mmivit.weights.checkpoint import read_checkpoint
from mmivit.weights.converters import adapt_input_channels, convert, convert_file
from mmivit.weights.sources import fetch
from tests.conftest import CONFIGS, run_tool
from tests.weights.states import as_the_authors_wrote_it, equal, prefixed, randomise, small_caformer

CAFORMERS = dict(
    caformer_s18='tiny', caformer_s36='small', caformer_m36='medium', caformer_b36='base'
)


def stage_outputs(backbone, image):
    outputs = []
    hooks = [
        stage.register_forward_hook(lambda *args: outputs.append(args[2]))
        for stage in backbone.stages
    ]
    with torch.no_grad():
        backbone(image)
    for hook in hooks:
        hook.remove()
    return outputs


@pytest.mark.parametrize('name', CAFORMERS)
def test_caformer_computes_the_same(name):
    caformer = randomise(timm.create_model(name))
    converted, report = convert(caformer.state_dict(), attention='mhsa')
    assert report.source == 'caformer'
    assert report.arch == CAFORMERS[name]
    assert report.missing == [f'norm{i}.weight' for i in range(4)]
    backbone = IViT(report.arch, attention='mhsa').eval()
    backbone.load_state_dict(converted, strict=False)
    features = timm.create_model(name, features_only=True).eval()
    features.load_state_dict(
        {n.replace('stages.', 'stages_'): t for n, t in caformer.state_dict().items()}, strict=False
    )
    for size in ((224, 224), (384, 384), (320, 448)):
        image = torch.randn(1, 3, *size)
        with torch.no_grad():
            expected = features(image)
        for own, other in zip(stage_outputs(backbone, image), expected, strict=True):
            torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-4 * other.abs().max().item())


def test_only_interaction_and_dense_norms_are_missing_from_caformer():
    caformer = timm.create_model('caformer_s18')
    converted, report = convert(caformer.state_dict())
    model = IViT('tiny')
    assert set(report.missing) == {
        name
        for name in model.state_dict()
        if '.interaction_' in name or re.fullmatch(r'norm\d\.weight', name)
    }
    assert set(converted) == set(model.state_dict()) - set(report.missing)
    assert set(report.started) == {n for n in converted if n.endswith(('.content', '.locality'))}
    assert set(report.matched) == set(converted) - set(report.started)
    assert all(name.startswith('head.') for name in report.dropped)
    assert not report.unexpected
    linear = [n for n in converted if re.match(r'stages\.[01].*(pwconv|fc)\d', n)]
    assert list(report.reshaped) == linear
    model.load_state_dict(converted, strict=False)
    for name, tensor in model.state_dict().items():
        if '.interaction_' in name:
            assert torch.equal(tensor, torch.eye(len(tensor)))


@pytest.mark.parametrize('head', [1000, 21841, 0])
def test_the_authors_own_checkpoints(head):
    state = small_caformer(num_classes=head).state_dict()
    expected, _ = convert(state)
    converted, report = convert(as_the_authors_wrote_it(state))
    assert report.source == 'metaformer'
    assert report.arch == 'nano'
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[name], expected[name]) for name in expected)


def test_timm_to_backbone_and_back():
    state = randomise(timm.create_model('ivit_nano', num_classes=9)).state_dict()
    backbone, report = convert(state)
    assert report.source == 'ivit'
    assert report.dropped == [name for name in state if name.startswith('head.')]
    assert report.missing == [f'norm{i}.weight' for i in range(4)]
    back, report = convert(backbone, target='timm')
    assert report.missing == [
        'head.norm.weight',
        'head.norm.bias',
        'head.fc.weight',
        'head.fc.bias',
    ]
    assert back.keys() == backbone.keys()
    assert all(torch.equal(back[name], state[name]) for name in back)
    kept, report = convert(state, target='timm')
    assert kept.keys() == state.keys()
    assert not report.missing


@pytest.mark.parametrize('config', ['mask_rcnn_ivit_shapes.py', 'upernet_ivit_shapes.py'])
def test_the_backbone_of_detectors_and_segmentors(config):
    cfg = Config.fromfile(CONFIGS / config)
    if cfg.default_scope == 'mmdet':
        from mmdet.registry import MODELS
        from mmdet.utils import register_all_modules
    else:
        from mmseg.registry import MODELS
        from mmseg.utils import register_all_modules
    register_all_modules()
    model = randomise(MODELS.build(cfg.model))
    converted, report = convert(model.state_dict())
    assert report.source == 'openmmlab'
    own = prefixed(converted)
    whole = {n: t for n, t in model.state_dict().items() if n.startswith('backbone.')}
    assert own.keys() == whole.keys()
    assert all(torch.equal(own[name], whole[name]) for name in own)
    assert len(report.dropped) == len(model.state_dict()) - len(whole)


def test_mmpretrain_classifiers():
    backbone = randomise(IViT('nano', out_indices=(3,))).state_dict()
    state = prefixed(backbone)
    state |= {'head.fc.weight': torch.zeros(5, 256), 'head.fc.bias': torch.zeros(5)}
    converted, report = convert(state)
    assert converted.keys() == backbone.keys()
    assert report.dropped == ['head.fc.weight', 'head.fc.bias']


@pytest.mark.parametrize('kind', ['mhsa', 'decomposed', 'interactive', 'imhsa'])
@pytest.mark.parametrize('wanted', ['mhsa', 'decomposed', 'interactive', 'imhsa'])
def test_between_attentions(kind, wanted):
    state = randomise(IViT('nano', attention=kind)).state_dict()
    converted, report = convert(state, attention=wanted)
    expected = IViT('nano', attention=wanted).state_dict()
    shared = state.keys() & expected.keys()
    assert set(report.matched) == shared
    assert converted.keys() == shared | report.started.keys()
    assert set(report.missing) == expected.keys() - converted.keys()
    assert set(report.dropped) == state.keys() - shared
    own = re.compile(r'.*\.(interaction\w*|content|locality)$')
    assert {n for n in state if not own.match(n)} <= shared
    landmarks = {n for n in expected if n.endswith(('.content', '.locality'))}
    whole = kind in ('mhsa', 'interactive')
    assert report.started.keys() == (landmarks if whole else set())


@pytest.mark.parametrize('wanted', ['imhsa', 'decomposed'])
@pytest.mark.parametrize('source', ['caformer', 'metaformer', 'mhsa', 'interactive'])
def test_landmarks_in_the_place_of_whole_maps_start_local(source, wanted):
    if source in ('mhsa', 'interactive'):
        state = randomise(IViT('nano', attention=source)).state_dict()
    else:
        state = small_caformer().state_dict()
    if source == 'metaformer':
        state = as_the_authors_wrote_it(state)
    converted, report = convert(state, attention=wanted)
    assert len(report.started) == 2 * (4 + 2)
    for name, value in report.started.items():
        assert value == (2 if name.endswith('.locality') else 0)
        assert converted[name].tolist() == [value] * len(converted[name])
    assert 'content 0, locality 2' in report.table()
    model = IViT('nano', attention=wanted)
    papers, report = convert(state, attention=wanted, paper_start=True)
    assert not report.started
    assert 'locality 2' not in report.table()
    assert not any(name.endswith(('.content', '.locality')) for name in papers)
    model.load_state_dict(papers, strict=False)
    for stage in model.stages[2:]:
        for block in stage.blocks:
            assert (block.token_mixer.content == 1).all()
            assert (block.token_mixer.locality == 0).all()


def test_between_landmarks_content_and_locality_are_the_sources():
    state = randomise(IViT('nano')).state_dict()
    for wanted in ('imhsa', 'decomposed'):
        converted, report = convert(state, attention=wanted)
        assert not report.started
        assert sum(name.endswith('.content') for name in converted) == 6
        assert all(torch.equal(converted[name], state[name]) for name in converted)


@pytest.mark.parametrize('interaction', ['pre', 'post', 'both'])
def test_the_own_attention_is_kept(interaction):
    state = IViT('nano', interaction=interaction, head_dim=16).state_dict()
    converted, report = convert(state)
    assert converted.keys() == state.keys()
    assert not report.missing


def test_heads_are_as_wide_as_they_are_said_to_be():
    """Nothing in weights of mhsa tells; a tensor with an entry for each head does."""
    state = IViT('nano', attention='mhsa', head_dim=16).state_dict()
    converted, report = convert(state, attention='imhsa', head_dim=16)
    assert report.head_dim is None
    assert IViT('nano', head_dim=16).load_state_dict(converted, strict=False).unexpected_keys == []
    assert convert(converted)[1].head_dim == 16
    with pytest.raises(CheckpointError, match='its heads are 16 wide: expected 32'):
        convert(converted, head_dim=32)


@pytest.mark.parametrize('channels', [1, 2, 3, 4, 6, 8])
def test_other_channel_counts_as_timm_does(channels):
    weight = torch.randn(8, 3, 7, 7)
    expected = adapt_input_conv(channels, weight.clone())
    torch.testing.assert_close(adapt_input_channels(weight, channels), expected)
    converted, report = convert(IViT('nano').state_dict(), in_channels=channels)
    model = IViT('nano', in_channels=channels)
    model.load_state_dict(converted)
    assert ('stem.conv.weight' in report.reshaped) == (channels != 3)


def test_a_constant_image_gets_the_same_response_whatever_the_channels():
    weight = torch.randn(8, 3, 7, 7)
    for channels in (1, 3, 6):
        total = adapt_input_channels(weight, channels).sum((1, 2, 3))
        torch.testing.assert_close(total, weight.sum((1, 2, 3)))


def test_a_backbone_without_its_last_stage():
    state = IViT('tiny', out_indices=(1, 2)).state_dict()
    converted, report = convert(state)
    assert report.arch == 'tiny'
    assert converted.keys() == state.keys()
    assert all(re.match(r'stages\.3\.|norm[03]', name) for name in report.missing)


def test_the_source_is_left_as_it_was():
    state = small_caformer().state_dict()
    before = {name: tensor.clone() for name, tensor in state.items()}
    convert(state, in_channels=1)
    assert state.keys() == before.keys()
    assert all(torch.equal(state[name], before[name]) for name in state)


def test_what_does_not_fit_stops_the_conversion():
    state = small_caformer().state_dict()
    with pytest.raises(CheckpointError, match=r'no place in an iViT: extra\.weight'):
        convert({**state, 'extra.weight': torch.zeros(1)})
    converted, report = convert({**state, 'extra.weight': torch.zeros(1)}, drop=['extra.*'])
    assert 'extra.weight' in report.dropped
    assert 'extra.weight' not in converted
    lacking = {n: t for n, t in state.items() if n != 'stages.1.blocks.0.mlp.fc1.weight'}
    with pytest.raises(CheckpointError, match=r'incomplete, 1 .*stages\.1\.blocks\.0\.mlp\.fc1'):
        convert(lacking)
    with pytest.raises(CheckpointError, match=r'fc1\.weight has the shape \(3, 3\)'):
        convert({**state, 'stages.1.blocks.0.mlp.fc1.weight': torch.zeros(3, 3)})
    with pytest.raises(CheckpointError, match="expected those of 'tiny'"):
        convert(state, arch='tiny')
    with pytest.raises(CheckpointError, match="no 'openmmlab'"):
        convert(state, source='openmmlab')
    with pytest.raises(CheckpointError, match=r'nothing is called haed'):
        convert(state, drop=['haed.*'])
    with pytest.raises(CheckpointError, match=r'no .caformer.*in_channels=0'):
        convert(state, in_channels=0)
    with pytest.raises(CheckpointError, match='no weights'):
        convert({})


def test_a_stage_that_lost_its_first_norm_is_incomplete():
    state = IViT('nano').state_dict()
    del state['stages.3.blocks.0.norm1.weight']
    with pytest.raises(CheckpointError, match='incomplete, 1 '):
        convert(state)
    shorter = {n: t for n, t in IViT('nano').state_dict().items() if 'stages.3' not in n}
    with pytest.raises(CheckpointError, match='incomplete'):
        convert(shorter, target='timm')


@pytest.mark.parametrize(
    ('name', 'tensor'),
    [
        ('stem.conv.weight', torch.zeros(3)),
        ('stages.0.blocks.0.norm1.weight', torch.tensor(1.0)),
        ('stages.2.blocks.0.token_mixer.interaction_q', torch.tensor(1.0)),
        ('stages.0.blocks.100000000.norm1.weight', torch.zeros(32)),
        ('stages.9.blocks.0.token_mixer.interaction_q', torch.zeros(3, 3)),
    ],
)
def test_odd_tensors_are_errors_not_tracebacks(name, tensor):
    with pytest.raises(CheckpointError):
        convert({**{name: tensor}, **IViT('nano').state_dict(), **{name: tensor}})


def test_depth_beyond_reason_is_refused_before_it_is_built():
    blocks = {f'stages.2.blocks.{i}.x': torch.zeros(0) for i in range(10**5)}
    with pytest.raises(CheckpointError, match='more than 512 blocks'):
        convert({**IViT('nano').state_dict(), **blocks})


def test_names_of_strangers_are_shown_on_one_printable_line():
    state = IViT('nano').state_dict()
    with pytest.raises(CheckpointError) as error:
        convert({**state, 'a\x1b[31m\nb': torch.zeros(1)})
    assert str(error.value).isprintable()
    with pytest.raises(CheckpointError) as error:
        convert({'a\x1b[31m\nb': torch.zeros(1)})
    assert str(error.value).isprintable()
    _, report = convert({**state, 'head.a\x1b\nb': torch.zeros(1)})
    assert '\x1b' not in report.table()


def test_the_table_counts_and_lists():
    _, report = convert(small_caformer().state_dict())
    table = report.table()
    assert 'caformer -> backbone, iViT nano' in table
    assert f'matched      {len(report.matched)}' in table
    assert f'missing       {len(report.missing)}' in table
    assert 'stages.2.blocks.0.token_mixer.interaction_q' in table
    assert 'head.fc.fc1.weight' in table


def test_a_stem_alone_is_incomplete():
    stem = {k: v for k, v in IViT('nano').state_dict().items() if k.startswith('stem.')}
    with pytest.raises(CheckpointError, match='incomplete'):
        convert(stem, source='ivit', arch='nano')


# Files


@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
def test_round_trip_is_exact(suffix, folder):
    """timm iViT -> backbone -> detector -> backbone -> timm, through files."""
    classifier = randomise(timm.create_model('ivit_nano', num_classes=3)).state_dict()
    torch.save(classifier, 'timm.pth')
    convert_file('timm.pth', f'backbone.{suffix}')
    backbone = fetch(f'backbone.{suffix}')
    detector = prefixed(backbone)
    detector['neck.convs.0.weight'] = torch.randn(2, 2, 1, 1)
    torch.save(dict(state_dict=detector, meta=dict(epoch=1)), 'detector.pth')
    convert_file('detector.pth', f'again.{suffix}')
    convert_file(f'again.{suffix}', f'back.{suffix}', target='timm')
    back = fetch(f'back.{suffix}')
    assert equal(back, {n: t for n, t in classifier.items() if not n.startswith('head.')})


def test_the_file_says_where_it_comes_from(folder):
    torch.save(small_caformer().state_dict(), 'caformer.pth')
    convert_file('caformer.pth', 'a.pth')
    convert_file('caformer.pth', 'a.safetensors')
    meta = read_checkpoint('a.pth')['meta']
    with safe_open('a.safetensors', 'pt') as file:
        assert file.metadata() == meta
    assert meta['source'] == 'caformer.pth'
    assert re.fullmatch('[0-9a-f]{64}', meta['sha256'])
    assert meta['arch'] == 'nano'
    assert meta['converter'].startswith('mmivit ')
    assert all(isinstance(value, str) for value in meta.values())
    assert os.listdir() == ['caformer.pth', 'a.pth', 'a.safetensors'] or len(os.listdir()) == 3


@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
def test_file_names_need_not_be_text(suffix, folder):
    source, destination = os.fsdecode(b'\xff.pth'), os.fsdecode(b'\xff2.') + suffix
    torch.save(IViT('nano').state_dict(), source)
    convert_file(source, destination)
    os.rename(destination, f'text.{suffix}')  # safetensors itself opens no other
    assert equal(fetch(f'text.{suffix}'), fetch(source))


def test_mmengines_own_initialisation_takes_a_converted_file(folder):
    torch.save(small_caformer().state_dict(), 'caformer.pth')
    convert_file('caformer.pth', 'a.pth')
    model = IViT('nano', init_cfg=dict(type='Pretrained', checkpoint='a.pth'))
    model.init_weights()
    converted = fetch('a.pth')
    assert equal({n: model.state_dict()[n] for n in converted}, converted)


def test_timm_takes_a_converted_file(folder):
    state = randomise(timm.create_model('ivit_nano', num_classes=4)).state_dict()
    trained = {f'module.{name}': tensor for name, tensor in state.items()}
    # As timm's training script saves it.
    torch.save(dict(state_dict=trained, args=Namespace(lr=0.1), epoch=2), 'trained.pth')
    convert_file('trained.pth', 'timm.safetensors', target='timm')
    model = timm.create_model('ivit_nano', num_classes=4, checkpoint_path='timm.safetensors')
    assert equal(model.state_dict(), state)


def test_an_existing_file_is_kept_unless_forced(folder):
    torch.save(small_caformer().state_dict(), 'caformer.pth')
    (folder / 'a.pth').write_text('mine')
    with pytest.raises(FileExistsError, match='--force'):
        convert_file('caformer.pth', 'a.pth')
    assert (folder / 'a.pth').read_text() == 'mine'
    convert_file('caformer.pth', 'a.pth', dry_run=True)
    assert (folder / 'a.pth').read_text() == 'mine'
    convert_file('caformer.pth', 'a.pth', force=True)
    assert fetch('a.pth')


class Hostile:
    def __reduce__(self):
        return os.system, ('touch harmed',)


def truncated(data):
    return data[: len(data) // 2]


BAD = {
    'empty.pth': (lambda: b'', 'an empty file'),
    'text.pth': (lambda: b'<html>not found</html>\n', 'a text file'),
    'pickle.pth': (lambda: pickle.dumps(Hostile(), 2), 'plain pickle, not safe to load'),
    'cut.pth': (lambda: truncated(saved({'a': torch.ones(99)})), 'cut short'),
    'hostile.pth': (lambda: saved({'a': torch.ones(1), 'b': Hostile()}), 'not safe to load'),
    'list.pth': (lambda: saved([1, 2]), 'holds a list'),
    'none.pth': (lambda: saved({'epoch': 3}), 'holds no weights.*epoch'),
    'resnet.pth': (lambda: saved(timm.create_model('resnet18').state_dict()), 'a ResNet'),
    'swin.pth': (
        lambda: saved(timm.create_model('swin_tiny_patch4_window7_224').state_dict()),
        'a Swin',
    ),
    'cut.safetensors': (lambda: truncated(safe({'a': torch.ones(99)})), 'safetensors'),
    'model.pth': (lambda: saved({'model': torch.ones(3)}), 'an unknown model'),
    'names.pth': (lambda: saved({0: torch.ones(3)}), 'not only weights'),
    'meta.pth': (lambda: saved({'a': torch.ones(3, device='meta')}), 'not only weights'),
    'sparse.pth': (lambda: saved({'a': torch.ones(3).to_sparse()}), 'not only weights'),
    'noise.pth': (lambda: bytes(range(1, 200)), 'neither an archive'),
}


def saved(content):
    torch.save(content, 'content.tmp')
    with open('content.tmp', 'rb') as file:
        return file.read()


def safe(content):
    save_file(content, 'content.tmp')
    with open('content.tmp', 'rb') as file:
        return file.read()


@pytest.mark.parametrize('name', BAD)
def test_bad_files_are_named_for_what_they_are(name, folder):
    make, message = BAD[name]
    (folder / name).write_bytes(make())
    with pytest.raises(CheckpointError, match=message) as error:
        convert_file(name, 'out.pth')
    assert len(str(error.value).splitlines()) == 1
    assert not (folder / 'out.pth').exists()
    assert not (folder / 'harmed').exists()


def test_the_command(folder):
    torch.save(small_caformer().state_dict(), 'caformer.pth')
    done = run_tool('convert_weights.py', 'caformer.pth', 'a.safetensors', '--dry-run', cwd=folder)
    assert done.returncode == 0, done.stderr
    assert 'missing' in done.stdout
    assert 'content 0, locality 2' in done.stdout
    assert not os.path.exists('a.safetensors')
    done = run_tool('convert_weights.py', 'caformer.pth', 'a.safetensors', cwd=folder)
    assert done.returncode == 0, done.stderr
    assert any(name.endswith('.locality') for name in load_file('a.safetensors'))
    done = run_tool(
        'convert_weights.py', 'caformer.pth', 'b.safetensors', '--paper-start', cwd=folder
    )
    assert done.returncode == 0, done.stderr
    assert not any(name.endswith('.locality') for name in load_file('b.safetensors'))
    again = run_tool('convert_weights.py', 'caformer.pth', 'a.safetensors', cwd=folder)
    assert again.returncode == 1
    assert again.stderr.strip() == (
        'convert_weights: a.safetensors exists; name another file, or replace it with --force'
    )
