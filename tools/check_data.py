"""Read a config's data sets, every image and annotation, and say what is wrong with them.

python tools/check_data.py configs/examples/your_dataset_detection.py

Exits with 0 when there is no problem, with 1 when there are some, with 2 when it could not look.
"""

import argparse
import sys

from mmivit.apis.check_data import SPLITS, check_datasets
from mmivit.apis.command import add_cfg_options, add_verbose, errors_told, quietly


def main() -> None:
    parser = argparse.ArgumentParser(description="Look for faults in a config's data sets.")
    parser.add_argument('config', help='config file')
    parser.add_argument('--split', nargs='+', choices=SPLITS, help='all by default')
    add_cfg_options(parser)
    add_verbose(parser)
    args = parser.parse_args()
    with errors_told(status=2), quietly(args):
        reports = check_datasets(args.config, args.split, args.cfg_options)
    print('\n\n'.join(map(str, reports)))
    problems = sum(sum(report.problems.values()) for report in reports)
    if problems:
        sys.exit(f'{problems} problems')


if __name__ == '__main__':
    main()
