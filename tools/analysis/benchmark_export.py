"""Graphs beside torch: what they compute, how well they do on held-out data, and their time.

python tools/analysis/benchmark_export.py nano configs/upernet_ivit.py       random weights
python tools/analysis/benchmark_export.py CONFIG CHECKPOINT CONFIG CHECKPOINT
python tools/analysis/benchmark_export.py CONFIG CHECKPOINT a.onnx a_int8.onnx a.xml

Every model is followed by what belongs to it. Without weights it gets random ones, and is compared
and timed at five sizes. Trained, it is scored on its config's test data, in torch and as a graph,
and timed on one of its images; its graph is exported, unless files of it are named.
"""

import argparse
import tempfile
from importlib import metadata
from pathlib import Path

from mmivit.apis.command import add_verbose, errors_told, quietly
from mmivit.export.benchmark import benchmark_export, models_asked
from mmivit.export.command import check_packages
from mmivit.export.held_out import ENGINES, judge
from mmivit.export.runtime import GraphError
from mmivit.models.ivit import ARCHITECTURES
from mmivit.utils.tables import markdown_row, markdown_table
from mmivit.utils.timing import machine

UPERNET = str(Path(__file__).parents[2] / 'configs' / 'upernet_ivit.py')


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'models',
        nargs='*',
        default=[*ARCHITECTURES, UPERNET],
        help=f'{", ".join(ARCHITECTURES)} (the backbone alone), or a config, its checkpoint and '
        'graphs of it; by default all backbones and UperNet',
    )
    parser.add_argument('--seconds', type=float, default=10, help='timing of each size, about')
    add_verbose(parser)
    args = parser.parse_args()
    engines = {name: _version(name.lower()) for name in ENGINES.values()}
    facts = {**machine('cpu'), **engines}
    print(*(f'{key}: {value}' for key, value in facts.items()), sep='\n')
    columns: tuple[str, ...] = ()
    with errors_told(GraphError), quietly(args), tempfile.TemporaryDirectory() as folder:
        check_packages()
        for model, checkpoint, graphs in models_asked(args.models):
            if checkpoint:
                rows = judge(model, checkpoint, graphs, Path(folder), args.seconds)
            else:
                rows = benchmark_export([model], args.seconds, Path(folder))
            for row in rows:
                if row.columns != columns:
                    columns = row.columns
                    print(f'\n{markdown_table(columns, names=2)}', flush=True)
                print(markdown_row(row.cells()), flush=True)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return 'not installed'


if __name__ == '__main__':
    main()
