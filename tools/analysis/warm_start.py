"""Is a warm start from ordinary attention worth it? Trains, compares, draws docs/warm_start.md's.

    python tools/analysis/warm_start.py work_dirs/warm_start

Killed, it goes on where it was when started again.
"""

import argparse
from pathlib import Path

from mmivit.apis.command import errors_told
from mmivit.experiments.warm_start import (
    WarmStartBudget,
    plot_warm_start,
    warm_start,
    warm_start_tables,
)

CONFIG = Path(__file__).parents[2] / 'configs' / 'upernet_ivit_shapes.py'


def main() -> None:
    default = WarmStartBudget()
    parser = argparse.ArgumentParser(description='Compare warm starts with training from scratch.')
    parser.add_argument('folder', type=Path, help='data, weights, runs.jsonl, curve.png')
    parser.add_argument('--seeds', type=int, nargs='+', default=(0, 1, 2))
    parser.add_argument('--pretrain', type=int, default=default.pretrain, help='iterations')
    parser.add_argument('--continued', type=int, default=default.continued, help='iterations')
    parser.add_argument('--finetune', type=int, default=default.finetune, help='iterations')
    parser.add_argument('--val-interval', type=int, default=default.val_interval)
    args = parser.parse_args()
    budget = WarmStartBudget(
        pretrain=args.pretrain,
        continued=args.continued,
        finetune=args.finetune,
        val_interval=args.val_interval,
    )
    with errors_told(ValueError, OSError):
        log = warm_start(args.folder, CONFIG, args.seeds, budget)
    print(warm_start_tables(log))
    plot_warm_start(log, args.folder / 'curve.png')
    print(f'{args.folder / "curve.png"}')


if __name__ == '__main__':
    main()
