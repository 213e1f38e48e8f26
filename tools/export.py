"""Write a detector or a segmentor as an ONNX graph, and check it.

python tools/export.py configs/upernet_ivit.py work_dirs/upernet_ivit/iter_160000.pth upernet.onnx
"""

import argparse

from mmivit.apis.command import add_cfg_options, add_force, add_verbose, errors_told, quietly
from mmivit.export import export
from mmivit.utils.tables import markdown_table


def main() -> None:
    parser = argparse.ArgumentParser(description='Write an ONNX graph and check it against torch.')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('out', help='the .onnx file to write')
    add_force(parser, 'OUT')
    parser.add_argument('--backbone', action='store_true', help='export the backbone alone')
    add_cfg_options(parser)
    add_verbose(parser)
    args = parser.parse_args()
    with errors_told(OSError), quietly(args):
        result = export(**vars(args))
    print(f'{args.out}: {result.what}')
    print(*(f'  {name}: {text}' for name, text in result.description.items()), sep='\n')
    rows = [parity.cells(args.out) for parity in result.parities]
    print(f'\n{markdown_table(result.columns, rows, names=2)}')


if __name__ == '__main__':
    main()
