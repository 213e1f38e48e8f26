"""Predict on images: pictures and one JSON per image.

python tools/predict.py CONFIG CHECKPOINT photo.jpg folder/ --out predictions
python tools/predict.py GRAPH.onnx photo.jpg folder/ --out predictions
"""

import argparse
import runpy
import sys
from pathlib import Path

if sys.argv[1:] and sys.argv[1].endswith('.onnx'):
    # What predicts from a graph imports neither torch nor OpenMMLab, so they need not be there.
    root = Path(__file__).resolve().parents[1]
    package = root / 'mmivit' if (root / 'mmivit').is_dir() else root.parent  # of a wheel: .mim
    runpy.run_path(str(package / 'export' / 'runtime.py'), run_name='__main__')

from mmivit.apis.command import add_cfg_options, add_force, errors_told
from mmivit.apis.predict import predict
from mmivit.utils.text import printable


def main() -> None:
    parser = argparse.ArgumentParser(description='Predict on images and folders.')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('inputs', nargs='+', help='images and folders')
    parser.add_argument('--out', default='predictions', help='folder to write')
    parser.add_argument('--device', help="'cpu', 'cuda:0', ...; the best available by default")
    parser.add_argument('--score-thr', type=float, default=0.3, help='least score shown')
    add_force(parser)
    add_cfg_options(parser)
    args = parser.parse_args()
    with errors_told(OSError):
        report = predict(**vars(args))
    print(f'{len(report.written)} images: {args.out}/pictures, {args.out}/predictions')
    for line in report.doubts.details():
        print(line)
    if report.failed:
        lines = [f'  {printable(path)}: {reason}' for path, reason in report.failed.items()]
        sys.exit('\n'.join([f'{len(report.failed)} could not be predicted:', *lines]))


if __name__ == '__main__':
    main()
