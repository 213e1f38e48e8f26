"""Draw the learning curves of several runs in one picture: loss and validation scores.

python tools/analysis/plot_logs.py work_dirs/imhsa work_dirs/mhsa --out curves.png
"""

import argparse
import sys

from mmivit.analysis.learning_curves import plot_logs


def main() -> None:
    parser = argparse.ArgumentParser(description='Draw the learning curves of several runs.')
    parser.add_argument('runs', nargs='+', help='work dirs')
    parser.add_argument('--out', default='curves.png', help='PNG to write')
    parser.add_argument('--force', action='store_true', help='replace what was drawn earlier')
    args = parser.parse_args()
    try:
        plot_logs(args.runs, args.out, args.force)
    except (OSError, ValueError) as error:
        sys.exit(f'plot_logs: {error}')
    print(args.out)


if __name__ == '__main__':
    main()
