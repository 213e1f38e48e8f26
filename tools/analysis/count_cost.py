"""Parameters and multiply-accumulates of the backbones, or of the whole models of configs.

    python tools/analysis/count_cost.py --size 224x224 800x1333
    python tools/analysis/count_cost.py configs/mask_rcnn_ivit.py --size 800x1280

The first is the README's table of architectures, the second a row of docs/model_zoo.md.
"""

import argparse

from mmivit.analysis.cost import SIZES, Cost, architecture_costs, config_cost
from mmivit.apis.command import errors_told
from mmivit.apis.config import read_config
from mmivit.models.attention import ATTENTIONS
from mmivit.utils.tables import markdown_row, markdown_table


def pixels(text: str) -> tuple[int, int]:
    height, width = map(int, text.split('x'))
    return height, width


def print_architectures(sizes: list[tuple[int, int]], options: dict) -> None:
    costs = [architecture_costs(size, **options) for size in sizes]
    titles = [f'MACs at {height} x {width}' for height, width in sizes]
    rows = [
        [arch, millions(cost), *(billions(column[arch]) for column in costs)]
        for arch, cost in costs[0].items()
    ]
    print(markdown_table(['arch', 'parameters', *titles], rows))


def print_configs(paths: list[str], sizes: list[tuple[int, int]], options: dict) -> None:
    print(markdown_table(['config', 'image', 'parameters', 'MACs'], names=2))
    for path in paths:
        cfg = read_config(path)
        for size in sizes or [SIZES.get(cfg.get('default_scope'))]:
            cost = config_cost(cfg, size, **options)
            cells = (path, f'{size[0]} x {size[1]}', millions(cost), billions(cost))
            print(markdown_row(cells), flush=True)


def millions(cost: Cost) -> str:
    return f'{cost.parameters / 1e6:.1f} M'


def billions(cost: Cost) -> str:
    return f'{cost.macs / 1e9:.1f} G'


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
    with errors_told(ValueError):
        print_configs(args.configs, args.size, options)


if __name__ == '__main__':
    main()
