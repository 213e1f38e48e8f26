"""ONNX graphs of the five backbones and of UperNet: how they compare with torch, and their time.

python tools/analysis/benchmark_export.py           the table of docs/export.md
python tools/analysis/benchmark_export.py nano configs/upernet_ivit_nano.py
"""

import argparse
import tempfile
from pathlib import Path

from mmivit.apis.command import errors_told
from mmivit.export.benchmark import benchmark_export
from mmivit.models.ivit import ARCHITECTURES
from mmivit.utils.tables import markdown_row, markdown_table
from mmivit.utils.timing import machine

UPERNET = str(Path(__file__).parents[2] / 'configs' / 'upernet_ivit.py')


def main() -> None:
    parser = argparse.ArgumentParser(description='Compare and time ONNX graphs.')
    parser.add_argument(
        'models',
        nargs='*',
        default=[*ARCHITECTURES, UPERNET],
        help=f"{', '.join(ARCHITECTURES)} (the backbone alone), or a whole model's config",
    )
    parser.add_argument('--seconds', type=float, default=10, help='timing of each size, about')
    args = parser.parse_args()
    print(*(f'{key}: {value}' for key, value in machine('cpu').items()), sep='\n')
    columns: tuple[str, ...] = ()
    with errors_told(), tempfile.TemporaryDirectory() as folder:
        for timed in benchmark_export(args.models, args.seconds, Path(folder)):
            if timed.columns != columns:
                columns = timed.columns
                print(f'\n{markdown_table(columns, names=2)}', flush=True)
            print(markdown_row(timed.cells()), flush=True)


if __name__ == '__main__':
    main()
