"""The config in a checkpoint: read as values, whatever its text is."""

import pytest

from mmivit.apis.config import read_config
from mmivit.apis.settings import _plain
from mmivit.weights.stored_config import DEEPEST, UNKNOWN, stored_config
from tests.conftest import CONFIGS


def read(text):
    return stored_config(dict(meta=dict(cfg=text)))


@pytest.mark.parametrize('name', ['mask_rcnn_ivit_shapes.py', 'upernet_ivit.py'])
def test_what_mmengine_writes_is_read_whole(name):
    cfg = read_config(str(CONFIGS / name))
    assert read(cfg.pretty_text) == _plain(cfg.to_dict())


def test_plain_values_alone_are_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = r"""a = dict(x=-1e-05, y=[(1, 'it\'s'), {0: None, 'k': "q"}], z=dict(), w=(True, ), )
b = __import__('os').mkdir('harmed')
c = open('harmed', 'w')
d = dict(x=__import__)
e = inf
f = <function g at 0x7f>
g = 'unfinished
h = 'sound'
"""
    assert read(text) == dict(
        a=dict(x=-1e-05, y=[[1, "it's"], {0: None, 'k': 'q'}], z={}, w=[True]),
        d=dict(x=UNKNOWN),
        e=UNKNOWN,
        h='sound',
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('meta', [None, 5, {}, dict(cfg=None), dict(cfg=5), dict(cfg='')])
def test_without_a_config_there_are_no_settings(meta):
    assert stored_config(dict(meta=meta)) == stored_config({}) == {}


@pytest.mark.parametrize(
    ('start', 'repeated'),
    [
        *(('', text) for text in ('[', 'dict(a=', '-', '1', '{(', 'x = ', '\0')),
        *(('a', '.b'), ('1', '+1'), ("'", '\\')),
    ],
)
def test_text_made_to_harm_its_reader_is_passed_over(start, repeated):
    value = start + repeated * (900_000 // len(repeated))
    assert read(f'x = {value}\ny = 1') == dict(y=1)
    assert read(f'x = {"[" * DEEPEST}{"]" * DEEPEST}')
