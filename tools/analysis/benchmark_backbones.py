"""iViT against the backbones of its size in mmdet and timm: inference and a training step.

python tools/analysis/benchmark_backbones.py                   Tiny, and whole detectors, segmentors
python tools/analysis/benchmark_backbones.py --size base
python tools/analysis/benchmark_backbones.py --timm vit_tiny_patch16_224 vit_tiny_patch16_224_imhsa
"""

import argparse
from pathlib import Path

import torch

from mmivit.analysis.benchmark import table, write_rows
from mmivit.analysis.benchmark_backbones import (
    backbone_verdicts,
    benchmark_backbones,
    benchmark_timm,
    benchmark_whole,
)
from mmivit.apis.command import errors_told
from mmivit.utils.tables import markdown_table
from mmivit.utils.timing import machine

CONFIGS = Path(__file__).parents[2] / 'configs'


def pixels(text: str) -> tuple[int, int]:
    height, width = map(int, text.split('x'))
    return height, width


def main() -> None:
    parser = argparse.ArgumentParser(description='Time backbones.')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--size', choices=('tiny', 'small', 'base'), default='tiny')
    parser.add_argument(
        '--timm', nargs='+', metavar='NAME', help="these of timm's registry, and no others"
    )
    parser.add_argument(
        '--image', type=pixels, default=(1024, 1024), help='HEIGHTxWIDTH in pixels, with --timm'
    )
    parser.add_argument('--out', type=Path, default=Path('work_dirs/benchmark_backbones'))
    args = parser.parse_args()
    setting = machine(args.device)
    if args.timm:
        with errors_told():
            rows = benchmark_timm(args.timm, args.image, args.device)
    else:
        rows = benchmark_backbones(device=args.device, size=args.size)
    whole = args.size == 'tiny' and not args.timm
    if whole:
        rows += benchmark_whole(CONFIGS, args.device)
    write_rows(rows, setting, args.out)
    print(*(f'{key}: {value}' for key, value in setting.items()), sep='\n')
    print(f'\nmilliseconds\n{table(rows, "model", ("mode", "batch", "height", "width"))}\n')
    if args.timm:
        names = ('model', 'mode')
        lines = [[*(row[n] for n in names), f'{row["peak_bytes"] / 2**20:.0f}'] for row in rows]
        print(markdown_table([*names, 'peak MiB'], lines, names=2))
    if whole:  # the goals are Tiny's
        print(*backbone_verdicts(rows), sep='\n')
    print(f'{args.out}.json, .csv')


if __name__ == '__main__':
    main()
