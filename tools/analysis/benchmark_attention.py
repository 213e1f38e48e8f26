"""Time and memory of the four attentions over the number of tokens (the paper's Fig. 3).

python tools/analysis/benchmark_attention.py
python tools/analysis/benchmark_attention.py --dim 384 --heads 6        ViT-S, as in the paper
"""

import argparse
from pathlib import Path

import torch

from mmivit.analysis.benchmark import table, write_rows
from mmivit.analysis.benchmark_attention import (
    attention_verdicts,
    benchmark_attention,
    plot_attention,
)
from mmivit.utils.timing import machine


def main() -> None:
    parser = argparse.ArgumentParser(description='Time the four attentions.')
    parser.add_argument('--dim', type=int, default=320, help='channels')
    parser.add_argument('--heads', type=int, default=10)
    parser.add_argument(
        '--prefix',
        type=int,
        help="tokens in front of the grid, as a class token is; times those of timm's "
        "vision transformers, and not iViT's",
    )
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--dtype', choices=('float32', 'bfloat16'), default='float32')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/benchmark_attention'))
    args = parser.parse_args()
    setting = machine(args.device)
    rows = benchmark_attention(
        args.dim,
        args.heads,
        device=args.device,
        dtype=getattr(torch, args.dtype),
        prefix=args.prefix,
    )
    write_rows(rows, setting, args.out)
    plot_attention(rows, args.out.with_suffix('.png'))
    print(*(f'{key}: {value}' for key, value in setting.items()), sep='\n')
    print(f'\nmilliseconds\n{table(rows, "attention", ("mode", "batch", "tokens"))}\n')
    print(*attention_verdicts(rows), sep='\n')
    print(f'{args.out}.json, .csv, .png')


if __name__ == '__main__':
    main()
