"""What is said of an optimiser that a stock config brings along."""

import pytest
import torch

from mmivit.models import IViT

ARCH = dict(depths=(1, 1, 1, 1), widths=(32, 32, 32, 32))


def train(model, optimizer, steps=2):
    for _ in range(steps):
        sum(m.mean() for m in model(torch.rand(1, 3, 32, 32))).backward()
        optimizer.step()


@pytest.mark.parametrize('kind', [torch.optim.SGD, torch.optim.AdamW])
def test_sgd_is_warned_of_once(log, kind):
    detector = torch.nn.ModuleDict(dict(head=torch.nn.Linear(2, 2), backbone=IViT(ARCH)))
    other = torch.optim.SGD(torch.nn.Linear(2, 2).parameters(), lr=0.1)
    other.step()
    assert not log  # it trains another model
    train(detector['backbone'], kind(detector.parameters(), lr=0.02))
    warnings = [line for line in log if 'trained by SGD at a rate of 0.02' in line]
    assert len(warnings) == (kind is torch.optim.SGD)
    assert all('docs/pipelines.md' in line for line in warnings)


def test_a_frozen_backbone_is_nobodys(log):
    model = IViT(ARCH)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.1)
    train(model, optimizer)
    assert not log
