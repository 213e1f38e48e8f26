"""Make data sets of the photographs that two Python packages ship. Get the package first:

pip download --no-deps deepforest && python -m zipfile -e deepforest-*.whl wheels
python tools/make_photographs.py trees wheels data/trees               tree crowns, for detection

pip download --no-deps elpv-dataset && python -m zipfile -e elpv_dataset-*.whl wheels
python tools/make_photographs.py cells wheels data/cells               solar cells, for timm
"""

import argparse
import sys

from mmivit.datasets.photographs import split_table
from mmivit.datasets.solar_cells import CellsSpec, write_cells
from mmivit.datasets.tree_crowns import TreesSpec, write_trees


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument('source', help='folder where the wheel was unpacked')
    shared.add_argument('root', help='folder to write')
    shared.add_argument(
        '--force', action='store_true', help='replace the data set that the folder holds'
    )
    kinds = parser.add_subparsers(dest='kind', required=True)
    trees = kinds.add_parser('trees', parents=[shared], help='tree-crown boxes of deepforest')
    default = TreesSpec()
    trees.add_argument('--size', type=int, default=default.size, help='side of tiles, pixels')
    trees.add_argument('--overlap', type=int, default=default.overlap, help='of tiles, pixels')
    trees.add_argument(
        '--held-out',
        nargs='+',
        default=list(default.held_out),
        metavar='NAME',
        help='photographs for validation, without suffix (default: %(default)s)',
    )
    cells = kinds.add_parser('cells', parents=[shared], help='solar cells of elpv-dataset')
    cells.add_argument('--size', type=int, default=CellsSpec.size, help='side in pixels')
    cells.add_argument('--seed', type=int, default=CellsSpec.seed, help='of the split')
    args = parser.parse_args()
    try:
        if args.kind == 'trees':
            spec = TreesSpec(args.size, args.overlap, tuple(args.held_out))
            written = write_trees(args.source, args.root, spec, args.force)
        else:
            spec = CellsSpec(args.size, args.seed)
            written = write_cells(args.source, args.root, spec, args.force)
    except (ValueError, OSError) as error:
        sys.exit(f'make_photographs: {error}')
    print(f'{args.root}: {"written" if written else "holds this data set already"}')
    print(split_table(args.root))


if __name__ == '__main__':
    main()
