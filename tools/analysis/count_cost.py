"""Parameters and multiply-accumulates of the backbones, or of the whole models of configs.

    python tools/analysis/count_cost.py --size 224x224 800x1333
    python tools/analysis/count_cost.py configs/mask_rcnn_ivit.py --size 800x1280

The first is the README's table of architectures, the second a row of docs/model_zoo.md.
"""

import argparse
import sys

from mmengine.config import Config

from mmivit.analysis.cost import SIZES, Cost, architecture_costs, config_cost
from mmivit.models.attention import ATTENTIONS


def pixels(text: str) -> tuple[int, int]:
    height, width = map(int, text.split('x'))
    return height, width


def print_architectures(sizes: list[tuple[int, int]], options: dict) -> None:
    costs = [architecture_costs(size, **options) for size in sizes]
    titles = ' | '.join(f'MACs at {height} x {width}' for height, width in sizes)
    print(f'| arch | parameters | {titles} |')
    print('|---|' + '---:|' * (1 + len(costs)))
    for arch, cost in costs[0].items():
        macs = ' | '.join(f'{column[arch].macs / 1e9:.1f} G' for column in costs)
        print(f'| {arch} | {cost.parameters / 1e6:.1f} M | {macs} |')


def print_configs(paths: list[str], sizes: list[tuple[int, int]], options: dict) -> None:
    print('| config | image | parameters | MACs |')
    print('|---|---|---:|---:|')
    for path in paths:
        cfg = Config.fromfile(path)
        for size in sizes or [SIZES.get(cfg.get('default_scope'))]:
            cost = config_cost(cfg, size, **options)
            print(f'| {path} | {size[0]} x {size[1]} | {as_columns(cost)} |', flush=True)


def as_columns(cost: Cost) -> str:
    return f'{cost.parameters / 1e6:.1f} M | {cost.macs / 1e9:.1f} G'


def main() -> None:
    parser = argparse.ArgumentParser(description='Count parameters and MACs.')
    parser.add_argument('configs', nargs='*', help='whole models; without, a table of backbones')
    parser.add_argument(
        '--size',
        nargs='+',
        type=pixels,
        help='HEIGHTxWIDTH in pixels; for configs 800x1280 in mmdet and 512x2048 in mmseg, for '
        'backbones 224x224 800x1333, if not given',
    )
    parser.add_argument('--attention', choices=ATTENTIONS)
    parser.add_argument('--landmarks', type=int)
    args = parser.parse_args()
    options = dict(attention=args.attention, landmarks=args.landmarks)
    options = {name: value for name, value in options.items() if value is not None}
    if not args.configs:
        return print_architectures(args.size or [(224, 224), (800, 1333)], options)
    try:
        print_configs(args.configs, args.size, options)
    except (OSError, ValueError) as error:
        sys.exit(f'count_cost: {error}')


if __name__ == '__main__':
    main()
