"""iViT against the backbones of its size in mmdet and timm: inference and a training step.

python tools/analysis/benchmark_backbones.py                   Tiny, and whole detectors, segmentors
python tools/analysis/benchmark_backbones.py --size base
"""

import argparse
from pathlib import Path

import torch

from mmivit.analysis.benchmark import table, write_rows
from mmivit.analysis.benchmark_backbones import (
    backbone_verdicts,
    benchmark_backbones,
    benchmark_whole,
)
from mmivit.utils.timing import machine

CONFIGS = Path(__file__).parents[2] / 'configs'


def main() -> None:
    parser = argparse.ArgumentParser(description='Time backbones.')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--size', choices=('tiny', 'small', 'base'), default='tiny')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/benchmark_backbones'))
    args = parser.parse_args()
    setting = machine(args.device)
    rows = benchmark_backbones(device=args.device, size=args.size)
    if args.size == 'tiny':
        rows += benchmark_whole(CONFIGS, args.device)
    write_rows(rows, setting, args.out)
    print(*(f'{key}: {value}' for key, value in setting.items()), sep='\n')
    print(f'\nmilliseconds\n{table(rows, "model", ("mode", "batch", "height", "width"))}\n')
    if args.size == 'tiny':  # the goals are Tiny's
        print(*backbone_verdicts(rows), sep='\n')
    print(f'{args.out}.json, .csv')


if __name__ == '__main__':
    main()
