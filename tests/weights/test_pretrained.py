"""Files in and out: conversion, initialisation from a config, publishing, refused files."""

import os
import pickle
import re
import subprocess
import sys
from argparse import Namespace

import pytest
import timm
import torch
from mmengine.runner.checkpoint import load_checkpoint
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mmivit.errors import CheckpointError
from mmivit.models import IViT
from mmivit.weights.checkpoint import find_state_dict, read_checkpoint, write_checkpoint
from mmivit.weights.sources import PretrainedIViT, convert_file, fetch, publish
from tests.conftest import ROOT
from tests.weights.test_converters import randomise, small_caformer


def run(tool, *arguments, cwd, **environment):
    return subprocess.run(
        [sys.executable, str(ROOT / 'tools' / tool), *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


# Conversion of files


@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
def test_round_trip_is_exact(suffix, folder):
    """timm iViT -> backbone -> detector -> backbone -> timm, through files."""
    classifier = randomise(timm.create_model('ivit_nano', num_classes=3)).state_dict()
    torch.save(classifier, 'timm.pth')
    convert_file('timm.pth', f'backbone.{suffix}')
    backbone = fetch(f'backbone.{suffix}')
    detector = {f'backbone.{name}': tensor for name, tensor in backbone.items()}
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


def test_a_converted_file_holds_no_more_than_its_tensors(folder):
    whole = torch.randn(1000, 1000)
    write_checkpoint('view.pth', {'corner': whole[:1, :1]}, {})
    assert os.path.getsize('view.pth') < 10_000


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


@pytest.mark.parametrize('key', ['state_dict', 'model', 'state_dict_ema', 'model_ema', None])
@pytest.mark.parametrize('prefix', ['', 'module.', 'module._orig_mod.', '_orig_mod.module.'])
def test_weights_are_found_where_torch_and_timm_put_them(key, prefix):
    weights = {'a.weight': torch.ones(1), 'module_list.0': torch.ones(2)}
    held = {prefix + name: tensor for name, tensor in weights.items()}
    assert equal(find_state_dict({key: held, 'epoch': 3} if key else held), weights)


def test_averaged_weights_come_first():
    last, averaged = {'a': torch.zeros(1)}, {'a': torch.ones(1)}
    assert find_state_dict(dict(state_dict=last, state_dict_ema=averaged))['a'] == 1


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


# Refused files


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


# From a config


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


def test_a_backbone_starts_from_a_detectors(folder):
    source = randomise(IViT('nano', interaction='both'))
    torch.save({f'backbone.{n}': t for n, t in source.state_dict().items()}, 'detector.pth')
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
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state.get(name, before[name])), name


def test_heads_of_another_width_are_named(folder):
    torch.save(IViT('nano', head_dim=16).state_dict(), 'narrow.pth')
    with pytest.raises(CheckpointError, match=r'interaction_k is \(8, 8\), expected \(4, 4\)'):
        PretrainedIViT('narrow.pth')(IViT('nano'))


def test_weights_of_another_architecture_are_refused(folder):
    torch.save(IViT('tiny').state_dict(), 'tiny.pth')
    for arch in ('nano', 'small'):
        with pytest.raises(CheckpointError, match=r'iViT tiny and do not fit.*init_cfg=None'):
            PretrainedIViT('tiny.pth')(IViT(arch))


def test_without_network_the_way_on_is_named(folder, monkeypatch):
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    name = 'caformer_s18.sail_in22k_ft_in1k'
    with pytest.raises(CheckpointError) as error:
        PretrainedIViT(f'timm://{name}')(IViT('tiny'))
    assert f'tools/convert_weights.py timm://{name} {name}.pth' in str(error.value)
    assert '--cfg-options model.backbone.init_cfg=None' in str(error.value)
    for name in ('caformer', 'resnet50', 'ivit_nano', 'caformer_s18.foo'):
        with pytest.raises(CheckpointError, match=rf"no weights '{name}' that convert"):
            fetch(f'timm://{name}')


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


def test_urls_are_downloaded_once(folder, monkeypatch):
    served = folder / 'served'
    served.mkdir()
    torch.save(randomise(IViT('nano')).state_dict(), served / 'nano.pth')
    monkeypatch.setenv('TORCH_HOME', str(folder / 'cache'))
    url = (served / 'nano.pth').as_uri()
    first = fetch(url)
    (served / 'nano.pth').unlink()
    assert equal(fetch(url), first)
    # Another URL that ends alike is another file.
    other = folder / 'other'
    other.mkdir()
    torch.save({'a': torch.ones(1)}, other / 'nano.pth')
    assert set(fetch((other / 'nano.pth').as_uri())) == {'a'}
    torch.save({'a': torch.ones(1)}, other / 'nano-00000000.pth')
    with pytest.raises(CheckpointError, match='invalid hash'):
        fetch((other / 'nano-00000000.pth').as_uri())
    with pytest.raises(CheckpointError, match='could not be downloaded'):
        fetch((served / 'other.pth').as_uri())


# Publishing


def test_publishing_strips_and_names(folder):
    weights = {f'backbone.{n}': t for n, t in IViT('nano').state_dict().items()}
    checkpoint = dict(
        state_dict=weights,
        ema_state_dict={f'module.{name}': tensor for name, tensor in weights.items()},
        optimizer=dict(state={0: torch.ones(10)}),
        message_hub={},
        param_schedulers=[],
        meta=dict(dataset_meta=dict(classes=('a', 'b')), epoch=3, cfg='data_root = "/home/me"'),
    )
    torch.save(checkpoint, 'epoch_3.pth')
    written = publish('epoch_3.pth', 'out/mask_rcnn.pth')
    assert re.fullmatch(r'mask_rcnn-[0-9a-f]{8}\.pth', written.name)
    assert os.listdir('out') == [written.name]
    # torch.hub checks the name against the contents.
    state = torch.hub.load_state_dict_from_url(
        written.resolve().as_uri(), model_dir='hub', check_hash=True
    )
    assert set(state) == {'state_dict', 'meta'}
    assert state['meta'] == dict(dataset_meta=dict(classes=('a', 'b')), epoch=3)
    assert equal(state['state_dict'], weights)
    load_checkpoint(IViT('nano'), str(written), revise_keys=[(r'^backbone\.', '')])
    with pytest.raises(FileExistsError):
        publish('epoch_3.pth', 'out/mask_rcnn.pth')
    with safe_open(publish('epoch_3.pth', 'safe.safetensors'), 'pt') as file:
        assert file.metadata()['dataset_meta'] == '{"classes": ["a", "b"]}'
    assert publish('epoch_3.pth', 'out/mask_rcnn.pth', force=True) == written


# The commands


def test_the_commands(folder):
    torch.save(small_caformer().state_dict(), 'caformer.pth')
    done = run('convert_weights.py', 'caformer.pth', 'a.safetensors', '--dry-run', cwd=folder)
    assert done.returncode == 0, done.stderr
    assert 'missing' in done.stdout
    assert not os.path.exists('a.safetensors')
    done = run('convert_weights.py', 'caformer.pth', 'a.safetensors', cwd=folder)
    assert done.returncode == 0, done.stderr
    assert load_file('a.safetensors')
    again = run('convert_weights.py', 'caformer.pth', 'a.safetensors', cwd=folder)
    assert again.returncode == 1
    assert again.stderr.strip() == (
        'convert_weights: a.safetensors exists; name another file, or replace it with --force'
    )
    done = run('publish_model.py', 'a.safetensors', 'b.safetensors', cwd=folder)
    assert done.returncode == 0, done.stderr
    assert re.search(r'Weights: URL/b-[0-9a-f]{8}\.safetensors', done.stdout)
