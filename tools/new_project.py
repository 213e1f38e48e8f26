"""From a folder of images and annotations to checked data and a config ready to train.

python tools/new_project.py photos data/apples --annotations labels
python tools/new_project.py tiles data/trees --group '([^/]+)_[0-9]+_[0-9]+$' --small
python tools/new_project.py photos data/roads --annotations maps --classes background road

Reads COCO, Pascal VOC, YOLO, labelme, CVAT (for images) and label maps.
"""

import argparse
import shlex
import sys
from pathlib import Path

from mmengine.config import DictAction

from mmivit.apis.command import errors_told
from mmivit.apis.new_project import new_project

CONFIGS = Path(__file__).resolve().parent.parent / 'configs'


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('images', help='folder of images, searched with its subfolders')
    parser.add_argument('project', help="folder to write; its name is the config's")
    parser.add_argument(
        '--annotations', help='their file or folder (default: they lie beside the images)'
    )
    parser.add_argument(
        '--classes',
        nargs='+',
        metavar='NAME',
        help='which to keep, in this order; of label maps the names of the values 0, 1, ...',
    )
    parser.add_argument(
        '--group',
        help="which images belong together and are never divided by the split: 'folder', a regular "
        'expression whose first group names it, or a file of lines image,group '
        '(default: every image by itself)',
    )
    parser.add_argument(
        '--val',
        nargs='+',
        default=['0.2'],
        metavar='SHARE|GROUP',
        help='held out: a share of the images, or the names of groups (default: 0.2)',
    )
    parser.add_argument('--boxes', action='store_true', help='boxes alone, though there are masks')
    parser.add_argument(
        '--copy', action='store_true', help='copy the images (default: named where they are)'
    )
    parser.add_argument(
        '--small', action='store_true', help='for a CPU or a laptop: iViT-Nano, from scratch'
    )
    parser.add_argument(
        '--set',
        dest='settings',
        nargs='+',
        action=DictAction,
        metavar='NAME=VALUE',
        help="further settings of the block at the config's top: epochs=20 batch_size=4",
    )
    args = parser.parse_args()
    with errors_told(OSError, status=2):
        project = new_project(configs=CONFIGS, **vars(args))
    print('\n'.join(project.notes))
    print('\n\n'.join(map(str, project.reports)))
    print('Next:')
    train = shlex.quote(str(Path(sys.argv[0]).with_name('train.py')))
    for config in project.configs:
        print(f'    python {train} {shlex.quote(str(config))}')
    problems = sum(sum(report.problems.values()) for report in project.reports)
    if problems:
        sys.exit(f'{problems} problems; mend them in the annotations and make the project anew')


if __name__ == '__main__':
    main()
