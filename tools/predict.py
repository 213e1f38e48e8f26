"""Predict on images and videos: pictures, a JSON of each, and report.html to look through them.

python tools/predict.py CONFIG CHECKPOINT photo.jpg folder/ video.mp4 --out predictions
python tools/predict.py GRAPH.onnx photo.jpg folder/ --out predictions        or an .xml
"""

import argparse
import runpy
import sys
import types
from pathlib import Path

if sys.argv[1:] and sys.argv[1].endswith(('.onnx', '.xml')):
    # What predicts from a graph imports neither torch nor OpenMMLab, so they need not be there:
    # the package is found, and what its __init__ imports is not.
    root = Path(__file__).resolve().parents[1]
    package = types.ModuleType('mmivit')
    of_a_wheel = root.parent  # its tools are in mmivit/.mim
    package.__path__ = [str(root / 'mmivit' if (root / 'mmivit').is_dir() else of_a_wheel)]
    sys.modules['mmivit'] = package
    from mmivit.utils import report_page

    runtime = runpy.run_path(f'{package.__path__[0]}/export/runtime.py')
    sys.exit(runtime['main'](page=report_page))

from mmivit.apis.command import add_cfg_options, add_force, add_verbose, errors_told, quietly
from mmivit.apis.predict import predict
from mmivit.utils.text import printable


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('inputs', nargs='+', help='images, videos and folders')
    parser.add_argument('--out', default='predictions', help='folder to write')
    parser.add_argument('--device', help="'cpu', 'cuda:0', ...; the best available by default")
    parser.add_argument('--score-thr', type=float, default=0.3, help='least score shown')
    parser.add_argument(
        '--batch-size',
        type=int,
        default=1,
        help='images that the model takes at once; only those of one shape are put together, so '
        'that no image is padded for another and results are those of batch 1, but for rounding; '
        'folders of many shapes gain little',
    )
    parser.add_argument(
        '--processes',
        type=int,
        default=1,
        help='how many predict at once, each with a model of its own; they share the cores and, '
        'without --device, the GPUs',
    )
    parser.add_argument(
        '--opacity',
        type=float,
        help='of masks and colours in pictures: from 0 to 1; that of the visualizer by default',
    )
    add_force(parser, 'what was written for files of these names; others stay, in report.html too')
    add_cfg_options(parser)
    add_verbose(parser)
    args = parser.parse_args()
    with errors_told(OSError), quietly(args):
        report = predict(**vars(args))
    videos = f', {report.videos} videos of {report.frames} frames' if report.videos else ''
    images = len(report.written) - report.videos
    print(f'{images} images{videos}: {args.out}/pictures, {args.out}/predictions')
    print(f'all to look through: {args.out}/report.html')
    if report.empty:
        print(f'{report.empty} with nothing that scored {args.score_thr} or more (--score-thr)')
    for line in report.doubts.details():
        print(line)
    if report.failed:
        lines = [f'  {printable(path)}: {reason}' for path, reason in report.failed.items()]
        sys.exit('\n'.join([f'{len(report.failed)} could not be predicted:', *lines]))


if __name__ == '__main__':
    main()
