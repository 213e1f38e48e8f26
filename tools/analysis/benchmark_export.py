"""ONNX graphs of the five backbones and of UperNet: how they compare with torch, and their time.

python tools/analysis/benchmark_export.py           the table of docs/export.md
python tools/analysis/benchmark_export.py nano configs/upernet_ivit_nano.py
"""

import argparse
import sys
import tempfile
from pathlib import Path

from mmivit.analysis.benchmark import machine
from mmivit.errors import ExportError, LaunchError
from mmivit.export.graphs import PARITY_HEADER, benchmark_export, parity_rows
from mmivit.models.ivit import ARCHITECTURES

UPERNET = str(Path(__file__).parents[2] / 'configs' / 'upernet_ivit.py')


def main() -> None:
    parser = argparse.ArgumentParser(description='Compare and time ONNX graphs.')
    parser.add_argument(
        'models',
        nargs='*',
        default=[*ARCHITECTURES, UPERNET],
        help=f"{', '.join(ARCHITECTURES)} (the backbone alone), or a segmentor's config",
    )
    parser.add_argument('--seconds', type=float, default=10, help='timing of each size, about')
    args = parser.parse_args()
    print(*(f'{key}: {value}' for key, value in machine('cpu').items()), sep='\n')
    print(f'\n{PARITY_HEADER}', flush=True)
    with tempfile.TemporaryDirectory() as folder:
        try:
            for model, parities in benchmark_export(args.models, args.seconds, Path(folder)):
                print(parity_rows(model, parities), flush=True)
        except (ExportError, LaunchError) as error:
            sys.exit(f'benchmark_export: {error}')


if __name__ == '__main__':
    main()
