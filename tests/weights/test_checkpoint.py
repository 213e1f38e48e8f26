"""Reading checkpoints: MMEngine's own under weights_only, hostile ones refused, loads reported."""

import json
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.runner.checkpoint import load_checkpoint, load_state_dict
from torch import nn

from mmivit.errors import CheckpointError
from mmivit.models import IViT
from mmivit.weights import checkpoint
from tests.conftest import FORKS
from tests.weights.states import equal

ONE = torch.ones(1)
weights_only = pytest.mark.skipif(
    not checkpoint.HAS_ALLOW_LIST, reason='torch before 2.6 does not refuse pickles by default'
)


def history():
    hub = MessageHub('test')
    for value in (1.0, 2.0, 4.0):
        hub.update_scalar('train/loss', value)
    hub.update_scalar('train/numpy', np.float32(0.5))
    hub.update_info('iter', 3)
    return hub.state_dict()


def read_as_older_torch(path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, 'HAS_ALLOW_LIST', False)
        return checkpoint.read_checkpoint(path)


READERS = [pytest.param(torch.load, marks=weights_only), read_as_older_torch]


@pytest.mark.matrix('checkpoints')
@pytest.mark.parametrize('read', READERS)
def test_a_message_hub_loads_as_data(read, tmp_path):
    path = tmp_path / 'log.pth'
    state = dict(weight=torch.rand(3, 4).half(), kind=torch.float16, frozen=nn.Parameter(ONE))
    torch.save(dict(message_hub=history(), meta=dict(epoch=1), state_dict=state), path)
    loaded = read(path)
    assert torch.equal(loaded['state_dict']['weight'], state['weight'])
    assert loaded['state_dict']['kind'] is torch.float16
    assert loaded['state_dict']['frozen'] == ONE
    buffer = loaded['message_hub']['log_scalars']['train/loss']
    assert isinstance(buffer, HistoryBuffer)
    assert buffer.mean() == pytest.approx(7 / 3)
    assert buffer.statistics('max') == 4


class Hostile:
    """Runs code when unpickled."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


hostile_payloads = pytest.mark.parametrize(
    'payload',
    [
        Hostile(os.system, 'touch harmed'),
        Hostile(getattr, np.ndarray, 'tofile'),
        Hostile(getattr, HistoryBuffer, '__init__'),
        Hostile(getattr, HistoryBuffer([], []), 'mean'),
        Hostile(eval, "open('harmed', 'w')"),
        Hostile(exec, "open('harmed', 'w')"),
    ],
    ids=['os.system', 'getattr-array', 'getattr-init', 'getattr-instance', 'eval', 'exec'],
)


@pytest.mark.matrix('checkpoints')
@hostile_payloads
def test_a_hostile_checkpoint_is_refused(payload, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(dict(state_dict=IViT('nano').state_dict(), extra=payload), 'hostile.pth')
    for read in (checkpoint.read_checkpoint, read_as_older_torch):
        with pytest.raises(CheckpointError, match='not safe'):
            read('hostile.pth')
    assert not os.path.exists('harmed')


@pytest.mark.matrix('checkpoints')
@weights_only
@pytest.mark.skipif(FORKS, reason="MMEngine's fork loads what torch refuses")
@hostile_payloads
def test_mmengine_refuses_a_hostile_checkpoint(payload, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(dict(state_dict=IViT('nano').state_dict(), extra=payload), 'hostile.pth')
    with pytest.raises(pickle.UnpicklingError):
        load_checkpoint(IViT('nano'), 'hostile.pth')
    assert not os.path.exists('harmed')


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = IViT('nano', out_indices=(3,))


def loaders():
    return [
        lambda model, state: model.load_state_dict(state, strict=False),
        lambda model, state: load_state_dict(model, state),
    ]


@pytest.mark.parametrize('load', loaders(), ids=['torch', 'mmengine'])
def test_weights_that_match_nothing_are_an_error(load):
    resnet = {'conv1.weight': torch.zeros(64, 3, 7, 7), 'layer1.0.bn1.weight': torch.zeros(64)}
    with pytest.raises(RuntimeError, match=r'(?s)none of the loaded tensors.*conv1\.weight'):
        load(IViT('nano'), resnet)


@pytest.mark.parametrize('load', loaders(), ids=['torch', 'mmengine'])
def test_a_detector_given_a_bare_backbone_is_an_error(load):
    state = IViT('nano').state_dict()
    with pytest.raises(RuntimeError, match=r"(?s)none that begins with 'backbone\.'.*expected"):
        load(Detector(), state)


def test_a_load_is_reported(log):
    model = Detector()
    state = model.state_dict()
    del state['backbone.norm3.weight']
    state['backbone.stem.conv.bias'] = torch.zeros(7)
    state['backbone.head.weight'] = torch.zeros(1)
    load_state_dict(model, state)
    (report,) = (message for message in log if message.startswith('IViT:'))
    total = len(model.backbone.state_dict())
    assert f'IViT: {total - 2} of {total} tensors found' in report
    assert '1 missing: backbone.norm3.weight' in report
    assert '1 unexpected: backbone.head.weight' in report
    assert 'backbone.stem.conv.bias (7,) instead of (32,)' in report


def test_a_written_file_holds_no_more_than_its_tensors(folder):
    whole = torch.randn(1000, 1000)
    checkpoint.write_checkpoint('view.pth', {'corner': whole[:1, :1]}, {})
    assert os.path.getsize('view.pth') < 10_000


@pytest.mark.parametrize('key', ['state_dict', 'model', 'state_dict_ema', 'model_ema', None])
@pytest.mark.parametrize(
    'prefix',
    ['', 'module.', 'module._orig_mod.', '_orig_mod.module.', 'module.module.'],
)
def test_weights_are_found_where_torch_and_timm_put_them(key, prefix):
    weights = {'a.weight': torch.ones(1), 'module_list.0': torch.ones(2)}
    held = {prefix + name: tensor for name, tensor in weights.items()}
    assert equal(checkpoint.find_state_dict({key: held, 'epoch': 3} if key else held), weights)


def test_averaged_weights_come_first():
    last, averaged = {'a': torch.zeros(1)}, {'a': torch.ones(1)}
    assert checkpoint.find_state_dict(dict(state_dict=last, state_dict_ema=averaged))['a'] == 1


@pytest.mark.parametrize('counter', ['n_averaged', 'steps'])
def test_weights_that_are_averaged_or_compiled_in_part_have_their_own_names(counter):
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    model[1] = torch.compile(model[1])
    averaged = torch.optim.swa_utils.AveragedModel(model).state_dict()
    averaged[counter] = averaged.pop('n_averaged')
    assert set(checkpoint.find_state_dict(averaged)) == {'0.weight', '0.bias', '1.weight', '1.bias'}


def write_shards(folder, **changes):
    """Two files and their index, as Hugging Face writes them, with entries of the index changed."""
    from safetensors.torch import save_file

    weights = dict(a=torch.ones(2), b=torch.zeros(3))
    files = dict(a='model-00001-of-00002.safetensors', b='model-00002-of-00002.safetensors')
    for name, file in files.items():
        save_file({name: weights[name], 'other': torch.ones(1)}, folder / file)
    index = folder / 'model.safetensors.index.json'
    index.write_text(json.dumps(dict(metadata={}, weight_map={**files, **changes})))
    return index, weights


def test_weights_in_several_files_are_read_by_their_index(tmp_path):
    index, weights = write_shards(tmp_path)
    assert equal(checkpoint.read_checkpoint(index), weights)
    (tmp_path / 'model-00002-of-00002.safetensors').unlink()
    message = r'index\.json was not loaded: model-00002-of-00002\.safetensors.* is not beside it'
    with pytest.raises(CheckpointError, match=message):
        checkpoint.read_checkpoint(index)


@pytest.mark.parametrize(
    'file', ['../x.safetensors', '/x.safetensors', 'x/../x.safetensors', 'x.pth', '', 5, None]
)
def test_an_index_leads_nowhere_else(file, tmp_path):
    (tmp_path / 'in').mkdir()
    index, _ = write_shards(tmp_path / 'in', c=file)
    with pytest.raises(CheckpointError, match='no index of safetensors beside it'):
        checkpoint.read_checkpoint(index)


@pytest.mark.parametrize('text', ['', '{', '[]', '{"weight_map": 5}', '[' * 10**5, '{"a": 1}'])
def test_what_is_no_index_is_refused(text, tmp_path):
    index = tmp_path / 'x.safetensors.index.json'
    index.write_text(text)
    with pytest.raises(CheckpointError, match=r'x\.safetensors\.index\.json was not loaded'):
        checkpoint.read_checkpoint(index)


def test_tensors_that_no_file_has_are_named(tmp_path):
    index, _ = write_shards(tmp_path, c='model-00001-of-00002.safetensors')
    with pytest.raises(CheckpointError, match='the files that it names lack c'):
        checkpoint.read_checkpoint(index)


def test_a_format_is_told_by_its_name_in_capitals_too(folder):
    checkpoint.write_checkpoint('x.SAFETENSORS', dict(a=ONE), {})
    assert equal(checkpoint.read_checkpoint('x.SAFETENSORS'), dict(a=ONE))
    with pytest.raises(zipfile.BadZipFile):
        zipfile.ZipFile('x.SAFETENSORS')
