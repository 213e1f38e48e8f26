"""Images per second of predict.py, by batch and processes, beside the stock inferencer's.

python tools/analysis/benchmark_predict.py configs/mask_rcnn_ivit_shapes.py
"""

import argparse
import tempfile
from pathlib import Path

from mmivit.analysis.benchmark_predict import COLUMNS, benchmark_predict
from mmivit.apis.command import add_verbose, errors_told, quietly
from mmivit.apis.inferencers import LEGIBLE
from mmivit.utils.tables import markdown_table
from mmivit.utils.timing import machine


def main() -> None:
    parser = argparse.ArgumentParser(description='Time predictions from files to files.')
    parser.add_argument('config', help='config file')
    parser.add_argument('--checkpoint', help='weights; random ones if not given')
    parser.add_argument('--images', type=int, default=200, help='how many')
    parser.add_argument(
        '--size',
        type=int,
        default=LEGIBLE,
        help='of their sides, pixels; smaller are enlarged by us',
    )
    parser.add_argument('--rounds', type=int, default=3, help='how often each')
    parser.add_argument('--device', default='cpu')
    add_verbose(parser)
    args = parser.parse_args()
    print(*(f'{key}: {value}' for key, value in machine('cpu').items()), sep='\n')
    with errors_told(), quietly(args), tempfile.TemporaryDirectory() as folder:
        for rows in benchmark_predict(**vars(args), folder=Path(folder)):
            print(f'\n{markdown_table(COLUMNS, rows)}', flush=True)


if __name__ == '__main__':
    main()
