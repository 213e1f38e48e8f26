"""Hostile checkpoints: each refused with one line, in bounded time and memory, nothing run."""

import io
import json
import os
import pickle
import re
import socket
import subprocess
import sys
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from safetensors.torch import save as save_safetensors

from mmivit.errors import CheckpointError
from mmivit.models import IViT
from mmivit.weights.checkpoint import read_checkpoint
from tests.conftest import ROOT, TIMEOUT

# Reads files as torch before and since 2.6 does, with a GiB to spare, and tells what became of
# each. A crash or a file that fills the memory ends it.
READER = """
import json, resource, sys, time
from mmivit.weights import checkpoint
size = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 2**30,) * 2)
for path in sys.argv[1:]:
    for checkpoint.HAS_ALLOW_LIST in (True, False):
        try:
            checkpoint.find_state_dict(checkpoint.read_checkpoint(path))
            message = 'loaded'
        except (checkpoint.CheckpointError, OSError) as error:
            message = str(error)
        print(json.dumps([path, message]), flush=True)
"""


class Call:
    """A call that a pickle makes when it is loaded."""

    def __init__(self, function, *arguments, state=None):
        self.call = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.call


class Storage:
    """What torch stores outside the pickle."""

    def __init__(self, key, numel, kind=torch.FloatStorage):
        self.id = ('storage', kind, key, 'cpu', numel)


class Pickler(pickle._Pickler):
    def persistent_id(self, value):
        return value.id if isinstance(value, Storage) else None


def pickled(content):
    buffer = io.BytesIO()
    Pickler(buffer, 2).dump(content)
    return buffer.getvalue()


def tensor(numel, size, stride, offset=0, **options):
    arguments = (Storage('0', numel, **options), offset, size, stride, False, OrderedDict())
    return Call(torch._utils._rebuild_tensor_v2, *arguments)


def archive(content, compression=zipfile.ZIP_STORED, **members):
    """An archive as torch writes it, of a pickle or of what is to be pickled; 64 bytes stored."""
    data = content if isinstance(content, bytes) else pickled(content)
    buffer = io.BytesIO()
    members = {'version': b'3\n', 'byteorder': b'little', 'data/0': bytes(64), **members}
    with zipfile.ZipFile(buffer, 'w', compression) as file:
        file.writestr('x/data.pkl', data)
        for name, member in members.items():
            file.writestr(f'x/{name}', member)
    return buffer.getvalue()


def legacy(content):
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def twice_in_itself(pair, levels=40):
    """The pickle of a dictionary with pairs of pairs of the same, as a key or under one."""
    memos = b''.join(bytes([ord('q'), i, ord('h'), i]) + pair for i in range(levels))
    return b'\x80\x02}(' + b'K\x00' + memos + b'K\x01u.'


def named_twice():
    buffer = io.BytesIO(archive({'a': tensor(16, (16,), (1,))}))
    with zipfile.ZipFile(buffer, 'a') as file:
        file.writestr('x/data.pkl', pickled({}))
    return buffer.getvalue()


def overlapping():
    """Every entry of the directory is the same member, under names of one length."""
    data = archive({'a': tensor(16, (16,), (1,))}, **{f'data/{i}': bytes(9000) for i in range(9)})
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        first = file.getinfo('x/data/1').header_offset.to_bytes(4, 'little')
        entries = [file.getinfo(f'x/data/{i}').header_offset for i in range(2, 9)]
    start = data.index(b'PK\x01\x02')
    directory = data[start:]
    for offset in entries:
        directory = directory.replace(offset.to_bytes(4, 'little') + b'x/data/', first + b'x/data/')
    return data[:start].replace(bytes(9000), b'', 6) + directory


def on_many_disks():
    data = archive({'a': GOOD})
    return data[:-22] + b'PK\x06\x07' + bytes(12) + b'\7\0\0\0' + data[-22:]


def torchscript():
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), buffer)
    return buffer.getvalue()


def header(text, length=None):
    """A safetensors file with this header and 64 bytes."""
    text = text if isinstance(text, bytes) else json.dumps(text).encode()
    return (len(text) if length is None else length).to_bytes(8, 'little') + text + bytes(64)


def entry(shape, begin, end, dtype='F32'):
    return dict(dtype=dtype, shape=shape, data_offsets=[begin, end])


HARM = Call(os.system, 'touch harmed')
GOOD = tensor(16, (16,), (1,))
DTYPE = Call(np.dtype, 'f8', False, True, state=(3, '<', None, ('a',), {'a': (1, 0)}, -1, -1, 0))
CODE = 'not safe to load'
LARGER = 'larger than the file'
DAMAGED = 'damaged'
OBJECTS = Call(np.dtype, 'O8', False, True, state=(3, '|', None, None, None, -1, -1, 0))

CASES = {
    # Code, wherever it hides
    'code-top.pth': (lambda: archive(HARM), CODE),
    'code-beside.pth': (lambda: archive(dict(state_dict={'a': GOOD}, extra=HARM)), CODE),
    'code-weight.pth': (lambda: archive(dict(state_dict={'a': GOOD, 'b': HARM})), CODE),
    'code-optimizer.pth': (
        lambda: archive(dict(state_dict={'a': GOOD}, optimizer=dict(state={0: [HARM]}))),
        CODE,
    ),
    'code-hub.pth': (lambda: archive(dict(message_hub=dict(log_scalars={'loss': HARM}))), CODE),
    'code-meta.pth': (lambda: archive(dict(meta=dict(dataset_meta=dict(classes=(HARM,))))), CODE),
    'code-key.pth': (lambda: archive({HARM: 1}), CODE),
    'code-hook.pth': (lambda: archive({'a': Call(OrderedDict, [('hook', HARM)])}), CODE),
    'code-state.pth': (
        lambda: archive({'a': Call(HistoryBuffer, state=dict(_log_history=HARM))}),
        CODE,
    ),
    'code-legacy.pth': (lambda: legacy(dict(state_dict={'a': torch.ones(3)}, b=HARM)), CODE),
    'code-plain.pth': (lambda: pickle.dumps(HARM), 'plain pickle, not safe to load'),
    'code-script.pth': (torchscript, 'TorchScript'),
    'code-getattr.pth': (lambda: archive({'a': Call(getattr, HistoryBuffer, '__init__')}), CODE),
    # What fills the memory
    'compressed.pth': (
        lambda: archive({}, zipfile.ZIP_DEFLATED, **{'data/1': bytes(2**28)}),
        'compressed members',
    ),
    'overlapping.pth': (overlapping, 'larger than the file|not told apart|damaged'),
    'stored-less.pth': (lambda: archive({'a': tensor(10**8, (10**8,), (1,))}), LARGER),
    'negative.pth': (lambda: archive({'a': tensor(-5, (1,), (1,))}), LARGER),
    'repeated.pth': (lambda: archive({'a': tensor(16, (10**6, 10**6), (0, 0))}), LARGER),
    'shared.pth': (
        lambda: archive({str(i): tensor(16, (2**20,), (0,)) for i in range(99)}),
        LARGER,
    ),
    'outside.pth': (lambda: archive({'a': tensor(16, (400,), (9,))}), DAMAGED),
    'before.pth': (lambda: archive({'a': tensor(16, (4,), (1,), offset=-99999)}), DAMAGED),
    'from-nothing.pth': (lambda: archive({'a': Call(torch.Tensor, 2**33)}), f'{DAMAGED}|{CODE}'),
    'array.pth': (lambda: archive({'a': Call(np.ndarray, (2**40,))}), DAMAGED),
    'text.pth': (lambda: archive(b'\x80\x02X\xff\xff\xff\x7fabc.'), DAMAGED),
    'memo.pth': (lambda: archive(b'\x80\x02}r\xff\xff\xff\x7f.'), 'numbers more values'),
    # What never ends, or overflows the stack
    'key-of-keys.pth': (lambda: archive(twice_in_itself(b'\x86')), 'repeats the same values'),
    'list-of-lists.pth': (
        lambda: archive(twice_in_itself(b'\x86').replace(b'}(K\x00', b'}(U\x01aK\x00', 1)),
        'repeats the same values|damaged',
    ),
    'deep-key.pth': (lambda: archive(b'\x80\x02}N' + b'\x85' * 10**5 + b'K\x01s.'), '64 deep'),
    'deep-list.pth': (
        lambda: archive(b'\x80\x02' + b']' * 10**5 + b'a' * (10**5 - 1) + b'.'),
        '64 deep',
    ),
    'circle.pth': (lambda: archive(b'\x80\x02}q\x00U\x01ah\x00s.'), 'circles'),
    'encoding.pth': (
        lambda: archive({'a': Call(__import__('_codecs').encode, 'ä' * 99, 'punycode')}),
        'encoding',
    ),
    # What numpy would take for addresses
    'dtype.pth': (lambda: archive({'a': DTYPE}), 'numpy dtype'),
    'objects.pth': (lambda: archive({'a': OBJECTS}), f'numpy|{CODE}'),
    # Archives and names
    'named-twice.pth': (named_twice, 'not told apart'),
    'disks.pth': (on_many_disks, 'cut short or damaged'),  # found by the fuzzer
    'climbing.pth': (
        lambda: archive({'a': GOOD}, **{'../../climbed': b'x', '/tmp/../absolute': b'x'}),
        'loaded',
    ),
    'control.pth': (lambda: archive({'a\x1b[31m\n': GOOD}), r'not only weights.*\\x1b'),
    'other.pth': (lambda: archive(b'\x80\x04\x95\x01\0\0\0\0\0\0\0N.'), 'operation FRAME'),
    # safetensors
    'good.safetensors': (lambda: header({'a': entry([16], 0, 64)}), 'loaded'),
    'long.safetensors': (lambda: header({}, 2**63), 'safetensors'),
    'longer.safetensors': (lambda: header({}, 10**8), 'safetensors'),
    'over.safetensors': (
        lambda: header({'a': entry([16], 0, 64), 'b': entry([8], 32, 64)}),
        'safetensors',
    ),
    'overflow.safetensors': (lambda: header({'a': entry([2**62, 4], 0, 64)}), 'safetensors'),
    'huge.safetensors': (lambda: header({'a': entry([2**40], 0, 2**42)}), 'safetensors'),
    'nested.safetensors': (lambda: header(b'[' * 99999), 'safetensors'),
    'cut.safetensors': (lambda: save_safetensors({'a': torch.ones(9)})[:-8], 'safetensors'),
}


@pytest.fixture(scope='module')
def outcomes(tmp_path_factory):
    """What both readers make of every file, in one process."""
    folder = tmp_path_factory.mktemp('hostile')
    for name, (make, _) in CASES.items():
        (folder / name).write_bytes(make())
    before = set(os.listdir(folder))
    done = subprocess.run(
        [sys.executable, '-c', READER, *CASES],
        cwd=folder,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 0, done.stdout[-300:] + done.stderr[-3000:]
    assert set(os.listdir(folder)) == before  # nothing ran, nothing was unpacked
    found = {}
    for line in done.stdout.splitlines():
        path, message = json.loads(line)
        found.setdefault(path, []).append(message)
    return found


@pytest.mark.parametrize('name', CASES)
def test_hostile_files(name, outcomes):
    assert len(outcomes[name]) == 2
    for message in outcomes[name]:
        assert re.search(CASES[name][1], message), message
        assert message.isprintable()


def test_what_is_no_file_is_not_read(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / 'pipe.pth')
    (tmp_path / 'folder.pth').mkdir()
    (tmp_path / 'zeros.pth').symlink_to('/dev/zero')
    (tmp_path / 'circle.pth').symlink_to('circle.pth')
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(tmp_path)
        server.bind('socket.pth')
        for name in ('pipe.pth', 'folder.pth', 'zeros.pth', 'socket.pth'):
            with pytest.raises(CheckpointError, match='a folder, pipe or device'):
                read_checkpoint(tmp_path / name)
    for name in ('circle.pth', 'none.pth', 'long' * 99):
        with pytest.raises(OSError):  # noqa: PT011 - the system's words for each
            read_checkpoint(tmp_path / name)


@pytest.mark.parametrize('write', [None, legacy], ids=['archive', 'legacy'])
def test_sound_files_load(write, tmp_path):
    model = IViT('nano')
    sum(y.mean() for y in model(torch.randn(1, 3, 64, 64))).backward()
    optimizer = torch.optim.AdamW(model.parameters())
    optimizer.step()
    whole = torch.randn(8, 8)
    content = dict(
        state_dict={**model.state_dict(), 'tied': whole, 'again': whole, 'part': whole[::2, 1:]},
        optimizer=optimizer.state_dict(),
        empty=torch.zeros(0, 3),
        expanded=torch.ones(1).expand(5),
    )
    path = tmp_path / 'x.pth'
    if write:
        path.write_bytes(write(content))
    else:
        torch.save(content, path)
    loaded = read_checkpoint(path)
    for name, value in content['state_dict'].items():
        assert torch.equal(loaded['state_dict'][name], value)
    assert loaded['optimizer']['param_groups'] == content['optimizer']['param_groups']
