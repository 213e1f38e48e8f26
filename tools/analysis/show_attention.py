"""Draw what a trained model attends to, over an image: heads, landmarks, the four attentions.

Prints the files, and of every layer drawn how alike its maps are and whether they have collapsed.

    python tools/analysis/show_attention.py photo.jpg --config configs/mask_rcnn_ivit.py \
        --checkpoint work_dirs/mask_rcnn_ivit/epoch_12.pth --out attention --points 320,200
    python tools/analysis/show_attention.py photo.jpg --timm ivit_tiny --checkpoint ivit_tiny.pth
"""

import argparse

from mmivit.analysis.attention_pictures import show_attention
from mmivit.apis.command import add_force, add_verbose, errors_told, quietly


def point(text: str) -> tuple[int, int]:
    x, y = map(int, text.split(','))
    return x, y


def main() -> None:
    parser = argparse.ArgumentParser(description='Draw what a model attends to in an image.')
    parser.add_argument('image', help='image file')
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument('--config', help='config of a detector or segmentor')
    model.add_argument('--timm', help="name of a classifier in timm, such as 'ivit_tiny'")
    parser.add_argument('--checkpoint', required=True, help='checkpoint file')
    parser.add_argument('--out', default='attention', help='folder to write')
    parser.add_argument(
        '--points', nargs='+', type=point, default=(), help='X,Y in pixels; three if not given'
    )
    parser.add_argument(
        '--layer',
        nargs='+',
        default=(),
        help="names, or parts such as 'stages.3'; the deepest of the finest grid if not given",
    )
    add_force(parser, 'what was drawn earlier')
    add_verbose(parser)
    args = parser.parse_args()
    with errors_told(OSError, ValueError), quietly(args):
        shown = show_attention(
            args.image,
            args.checkpoint,
            args.out,
            config=args.config,
            timm=args.timm,
            points=args.points,
            layers=args.layer,
            force=args.force,
        )
    print('\n'.join(map(str, shown.files)))
    print(shown.summary)


if __name__ == '__main__':
    main()
