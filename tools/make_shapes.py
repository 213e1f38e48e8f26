"""Draw the built-in data set: instances in COCO's format, label maps in ADE20K's.

python tools/make_shapes.py data/shapes
python tools/make_shapes.py data/shapes_hard --hard                    classes by a distant cue
python tools/make_shapes.py data/shapes_folder --classification        for timm
"""

import argparse

from mmivit.apis.command import add_force, errors_told
from mmivit.datasets.shapes import ShapesSpec, write_dataset


def main() -> None:
    default = ShapesSpec()
    parser = argparse.ArgumentParser(description='Draw the built-in data set.')
    parser.add_argument('root', help='folder to write')
    parser.add_argument('--train', type=int, default=default.train, help='training images')
    parser.add_argument('--val', type=int, default=default.val, help='held-out images')
    parser.add_argument('--size', type=int, default=default.size, help='side in pixels')
    parser.add_argument('--seed', type=int, default=default.seed)
    parser.add_argument(
        '--hard',
        action='store_true',
        help='many small objects whose class depends on a beacon elsewhere in the image',
    )
    parser.add_argument(
        '--classification', action='store_true', help='one object per image, a folder per class'
    )
    add_force(parser, 'the data set that the folder holds')
    args = parser.parse_args()
    with errors_told(ValueError, OSError):
        spec = ShapesSpec(args.train, args.val, args.size, args.seed, args.hard)
        written = write_dataset(args.root, spec, args.force, args.classification)
    print(f'{args.root}: {"drawn" if written else "holds this data set already"}')


if __name__ == '__main__':
    main()
