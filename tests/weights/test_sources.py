"""Where weights come from: URLs and timm's hub."""

import pytest
import torch

from mmivit.errors import CheckpointError
from mmivit.models import IViT
from mmivit.weights.sources import fetch
from tests.weights.states import equal, randomise


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


@pytest.mark.parametrize('name', ['caformer', 'resnet50', 'ivit_nano', 'caformer_s18.foo'])
def test_timm_is_asked_for_nothing_but_what_converts(name):
    with pytest.raises(CheckpointError, match=rf"no weights '{name}' that convert.*caformer_s18"):
        fetch(f'timm://{name}')
