"""Which backbones are timed, and what is said about goals; never how fast anything is."""

import pytest
import torch
from torch import nn

from mmivit.analysis import benchmark_backbones as benchmark
from mmivit.models import IViT
from mmivit.utils import timing
from tests.conftest import CONFIGS


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(timing, 'ROUNDS', 2)


def test_the_floor_replays_products_and_convolutions_alone(monkeypatch):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))
    x = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        replay = benchmark.products(lambda: model(x))
    with benchmark._Products() as recorder:
        replay()
    assert [function.__name__.split('.')[0] for function, _ in recorder.calls] == [
        'convolution',
        'addmm',
    ]


def test_backbones_are_timed(monkeypatch):
    class LikeMmdet(nn.Conv2d):
        def train(self, mode=True):
            super().train(mode)  # and, as mmdet's, returns nothing

    def two(device, size):
        return {'iViT-T': IViT('nano'), 'Swin-T': LikeMmdet(3, 4, 4, stride=4)}

    monkeypatch.setattr(benchmark, 'backbones', two)
    monkeypatch.setattr(benchmark, 'IViT', lambda arch, **options: IViT('nano', **options))
    monkeypatch.setattr(benchmark, 'BF16_SIZE', (64, 96))
    monkeypatch.setattr(benchmark, 'has_bf16', lambda device: True)
    rows = benchmark.benchmark_backbones(sizes=((64, 96),))
    found = {(row['model'], row['mode']) for row in rows}
    assert found == {
        ('iViT-T', 'inference'),
        ('Swin-T', 'inference'),
        ('floor', 'inference'),
        ('iViT-T, bf16', 'inference'),
        ('iViT-T', 'training'),
        ('Swin-T', 'training'),
        ('iViT-T, with_cp', 'training'),
    }
    for row in rows:
        assert row['images_per_second'] == pytest.approx(row['batch'] / row['seconds'])
        assert (row['peak_bytes'] is None) == (row['mode'] == 'inference')
        assert (row['relative_error'] is None) == (row['model'] != 'iViT-T, bf16')
        assert row['relative_error'] is None or 1e-4 < row['relative_error'] < 0.1
    peak = {row['model']: row['peak_bytes'] for row in rows if row['mode'] == 'training'}
    assert peak['iViT-T, with_cp'] < peak['iViT-T']


def test_peers_are_of_the_same_size():
    models = benchmark.backbones('cpu').values()
    ours, *theirs = (sum(p.numel() for p in model.parameters()) for model in models)
    assert len(theirs) == 5
    assert all(0.8 * ours < count < 1.4 * ours for count in theirs)


def test_whole_models_are_timed_with_either_backbone(monkeypatch):
    small = {name: (config, (64, 64)) for name, (config, _) in benchmark.WHOLE.items()}
    monkeypatch.setattr(benchmark, 'WHOLE', small)
    rows = benchmark.benchmark_whole(CONFIGS)
    found = {(row['mode'], row['model']) for row in rows}
    assert found == {(mode, model) for mode in small for model in ('iViT-T', 'Swin-T')}


def test_a_line_per_goal_of_backbones():
    def row(model, mode, height, width, seconds, peak=None, error=None):
        result = dict(seconds=seconds, low=seconds, high=seconds, rounds=3)
        size = (height, width)
        return benchmark._row(model, mode, size, 1, 'cpu', result, peak, error)

    peers = ('iViT-T', 'ConvNeXt-T', 'Swin-T', 'PVTv2-B2', 'CAFormer-S18', 'floor')
    times = dict(zip(peers, (1.0, 2.0, 4.0, 8.0, 1.25, 0.5)))
    rows = [
        row(model, 'inference', *size, seconds)
        for model, seconds in times.items()
        for size in ((800, 1344), (512, 512))
    ]
    rows.append(row('iViT-T, bf16', 'inference', 800, 1344, 0.4, error=0.03))
    for model, seconds, peak in (('iViT-T', 3, 80), ('iViT-T, with_cp', 5, 60), ('Swin-T', 4, 100)):
        rows.append(row(model, 'training', 512, 512, seconds, peak))
    for model, seconds in (('iViT-T', 3.0), ('Swin-T', 2.0)):
        rows.append(row(model, 'UperNet', 512, 512, seconds))
    lines = benchmark.backbone_verdicts(rows)
    for line in (
        'reached inference 800 x 1344: 0.50x ConvNeXt-T (goal 1.0x)',
        'missed  inference 800 x 1344: 0.80x CAFormer-S18 (goal 0.48x)',
        'reached inference 512 x 512: 0.80x CAFormer-S18 (goal 0.95x)',
        'reached training step, seconds of iViT-T: 0.75x Swin-T (goal 0.8x)',
        'reached training step, peak_bytes of iViT-T: 0.80x Swin-T (goal 0.9x)',
        'missed  training step, peak_bytes of iViT-T, with_cp: 0.60x Swin-T (goal 0.5x)',
        'missed  inference 800 x 1344: 2.00x its own products and convolutions (goal 1.35x)',
        'reached bf16, 800 x 1344: 2.50x faster (goal 2x)',
        'missed  bf16, relative error 0.030 (goal 0.02)',
        'missed  UperNet 512 x 512: 1.50x that with Swin-T (goal 1x)',
    ):
        assert line in lines


def test_models_of_timm_are_timed():
    names = ['vit_tiny_patch16_224_imhsa', 'ivit_nano']
    rows = benchmark.benchmark_timm(names, (32, 64))
    assert [(r['model'], r['mode']) for r in rows] == [
        (name, mode) for mode in ('inference', 'training') for name in names
    ]
    assert all(row['peak_bytes'] > 0 for row in rows)
