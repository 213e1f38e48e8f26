"""Parameters and multiply-accumulates of the backbones, or of the whole models of configs.

    python tools/analysis/count_cost.py --size 224x224 800x1333
    python tools/analysis/count_cost.py configs/mask_rcnn_ivit.py --size 800x1280
    python tools/analysis/count_cost.py --timm vit_small_patch16_224 vit_small_patch16_224_imhsa

The first is the README's table of architectures, the second a row of docs/model_zoo.md.
"""

import argparse

from mmivit.analysis.cost import architectures_table, configs_table, timm_table
from mmivit.apis.command import errors_told
from mmivit.models.attention import ATTENTIONS


def pixels(text: str) -> tuple[int, int]:
    height, width = map(int, text.split('x'))
    return height, width


def main() -> None:
    parser = argparse.ArgumentParser(description='Count parameters and MACs.')
    parser.add_argument('configs', nargs='*', help='whole models; without, a table of backbones')
    parser.add_argument('--timm', nargs='+', metavar='NAME', help="models of timm's, without heads")
    parser.add_argument(
        '--size',
        nargs='+',
        type=pixels,
        help='HEIGHTxWIDTH in pixels; for configs 800x1280 in mmdet and 512x2048 in mmseg, for '
        'backbones 224x224 800x1333, with --timm 224x224 1024x1024, if not given',
    )
    parser.add_argument('--attention', choices=ATTENTIONS)
    parser.add_argument('--landmarks', type=int)
    args = parser.parse_args()
    options = dict(attention=args.attention, landmarks=args.landmarks)
    options = {name: value for name, value in options.items() if value is not None}
    if args.timm and (args.configs or options):
        parser.error('--timm stands alone: models of timm have what their name says')
    with errors_told(OSError, ValueError):
        if args.timm:
            print(timm_table(args.timm, args.size or [(224, 224), (1024, 1024)]))
        elif args.configs:
            print(configs_table(args.configs, args.size or (), **options))
        else:
            print(architectures_table(args.size or [(224, 224), (800, 1333)], **options))


if __name__ == '__main__':
    main()
