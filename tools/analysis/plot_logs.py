"""Draw the learning curves of several runs in one picture: loss and validation scores.

python tools/analysis/plot_logs.py work_dirs/imhsa work_dirs/mhsa --out curves.png
"""

import argparse

from mmivit.analysis.learning_curves import plot_logs
from mmivit.apis.command import add_force, errors_told


def main() -> None:
    parser = argparse.ArgumentParser(description='Draw the learning curves of several runs.')
    parser.add_argument('runs', nargs='+', help='work dirs')
    parser.add_argument('--out', default='curves.png', help='PNG to write')
    add_force(parser, 'what was drawn earlier')
    args = parser.parse_args()
    with errors_told(OSError, ValueError):
        plot_logs(args.runs, args.out, args.force)
    print(args.out)


if __name__ == '__main__':
    main()
