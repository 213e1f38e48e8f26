"""Parameters and multiply-accumulates of the backbones: the README's table of architectures.

python tools/analysis/count_cost.py --size 224x224 800x1333
"""

import argparse

from mmivit.analysis import architecture_costs
from mmivit.models.attention import ATTENTIONS


def main() -> None:
    parser = argparse.ArgumentParser(description='Count parameters and MACs of the backbones.')
    parser.add_argument(
        '--size',
        nargs='+',
        type=lambda text: tuple(map(int, text.split('x'))),
        default=[(224, 224), (800, 1333)],
        help='HEIGHTxWIDTH in pixels',
    )
    parser.add_argument('--attention', choices=ATTENTIONS, default='imhsa')
    parser.add_argument('--landmarks', type=int, default=7)
    args = parser.parse_args()
    options = dict(attention=args.attention, landmarks=args.landmarks)
    costs = [architecture_costs(size, **options) for size in args.size]
    sizes = ' | '.join(f'MACs at {height} x {width}' for height, width in args.size)
    print(f'| arch | parameters | {sizes} |')
    print('|---|' + '---:|' * (1 + len(costs)))
    for arch, cost in costs[0].items():
        macs = ' | '.join(f'{column[arch].macs / 1e9:.1f} G' for column in costs)
        print(f'| {arch} | {cost.parameters / 1e6:.1f} M | {macs} |')


if __name__ == '__main__':
    main()
