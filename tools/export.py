"""Write a segmentor, or a detector's backbone and neck, as an ONNX graph, and check it.

python tools/export.py configs/upernet_ivit.py work_dirs/upernet_ivit/iter_160000.pth upernet.onnx
"""

import argparse
import sys

from mmengine.config import DictAction

from mmivit.errors import CheckpointError, ExportError, LaunchError
from mmivit.export.graphs import export
from mmivit.export.parity import COLUMNS
from mmivit.utils.tables import markdown_table


def main() -> None:
    parser = argparse.ArgumentParser(description='Write an ONNX graph and check it against torch.')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('out', help='the .onnx file to write')
    parser.add_argument('--force', action='store_true', help='replace OUT')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='override settings of the config: key.subkey=value, lists as key="[a,b]"',
    )
    args = parser.parse_args()
    try:
        result = export(args.config, args.checkpoint, args.out, args.force, args.cfg_options)
    except (OSError, ExportError, LaunchError, CheckpointError) as error:
        sys.exit(f'export: {error}')
    print(f'{args.out}: {result.what}')
    print(*(f'  {name}: {text}' for name, text in result.description.items()), sep='\n')
    rows = [parity.cells(args.out) for parity in result.parities]
    print(f'\n{markdown_table(COLUMNS, rows, names=2)}')


if __name__ == '__main__':
    main()
