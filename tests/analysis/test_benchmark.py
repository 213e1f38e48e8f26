"""What the benchmarks count and print; never how fast anything is."""

import csv
import json

import pytest
import torch
from torch import nn

from mmivit.analysis import benchmark
from mmivit.models import IViT, build_attention
from tests.conftest import CONFIGS


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(benchmark, 'ROUNDS', 2)
    monkeypatch.setattr(benchmark, 'SECONDS', 0)


def test_every_attention_is_timed_and_written(quick, tmp_path):
    rows = benchmark.benchmark_attention(16, 2, grids=((4, 4), (8, 8)), batches=(1, 2))
    names = {'mhsa', 'decomposed', 'interactive', 'imhsa', 'floor'}
    found = {(r['attention'], r['tokens'], r['batch'], r['mode']) for r in rows}
    modes = ('forward', 'training')
    assert found == {(a, n, b, m) for a in names for n in (16, 64) for b in (1, 2) for m in modes}
    assert all(row['low'] <= row['seconds'] <= row['high'] for row in rows)
    assert all((row['saved_bytes'] is None) == (row['mode'] == 'forward') for row in rows)
    benchmark.write_rows(rows, benchmark.machine('cpu'), tmp_path / 'figures')
    written = json.loads((tmp_path / 'figures.json').read_text())
    assert written['rows'] == rows
    assert written['machine']['torch'] == torch.__version__
    assert len(list(csv.DictReader((tmp_path / 'figures.csv').open()))) == len(rows)
    benchmark.plot_attention(rows, tmp_path / 'figures.png')
    assert (tmp_path / 'figures.png').read_bytes().startswith(b'\x89PNG')


def test_quadratic_attentions_stop_at_their_limit(quick, monkeypatch):
    monkeypatch.setattr(benchmark, 'QUADRATIC_LIMIT', {'mhsa': 16, 'interactive': 4})
    rows = benchmark.benchmark_attention(16, 2, grids=((4, 4), (8, 8)), batches=(1,))
    assert {r['attention'] for r in rows if r['tokens'] == 64} == {'decomposed', 'imhsa', 'floor'}


def test_saved_bytes_count_each_storage_once():
    linear, x = nn.Linear(8, 8, bias=False), torch.randn(4, 8, requires_grad=True)
    assert benchmark.saved_bytes(lambda: linear(x), linear.parameters()) == 4 * 8 * 4
    assert benchmark.saved_bytes(lambda: linear(x)) == 4 * 8 * 4 + 8 * 8 * 4


def test_peak_bytes_are_those_held_at_once():
    x = torch.randn(1000, 10)

    def two_held_one_freed():
        a = x + 1  # 40 kB
        b = a * 2  # 80 kB
        del a
        return b - 1  # 80 kB again

    assert benchmark.peak_bytes(two_held_one_freed, 'cpu') == pytest.approx(80_000, rel=0.01)


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


def test_backbones_are_timed(quick, monkeypatch):
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


def test_whole_models_are_timed_with_either_backbone(quick, monkeypatch):
    small = {name: (config, (64, 64)) for name, (config, _) in benchmark.WHOLE.items()}
    monkeypatch.setattr(benchmark, 'WHOLE', small)
    rows = benchmark.benchmark_whole(CONFIGS)
    found = {(row['mode'], row['model']) for row in rows}
    assert found == {(mode, model) for mode in small for model in ('iViT-T', 'Swin-T')}


def test_a_line_per_goal():
    times = dict(mhsa=10.0, decomposed=2.0, interactive=50.0, imhsa=2.2, floor=1.0)
    rows = [
        dict(
            attention=name,
            tokens=tokens,
            mode=mode,
            batch=batch,
            seconds=seconds * tokens,
            peak_bytes=tokens * 100,
            saved_bytes=tokens * 64 * 4 * 5 if mode == 'training' else None,
            dim=64,
            dtype='float32',
        )
        for name, seconds in times.items()
        for tokens in (196, 1050, 4200, 16800)
        for mode in ('forward', 'training')
        for batch in (1, 4)
    ]
    lines = benchmark.attention_verdicts(rows)
    assert any('4,200 tokens, forward: 4.55x' in line and 'missed' in line for line in lines)
    assert any('slope of seconds: 1.00' in line and 'reached' in line for line in lines)
    assert any('the core saves 3.00x' in line and 'reached' in line for line in lines)
    assert any('batch 4: 0.25x' in line for line in lines)
    text = benchmark.table(rows, 'attention', ('mode', 'batch', 'tokens'))
    assert text.splitlines()[0].startswith('| attention | forward x 1 x 196 |')


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


def test_attentions_are_those_of_the_paper():
    for name in benchmark.ATTENTIONS:
        assert build_attention(name, 16, 2)
