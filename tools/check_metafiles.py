"""Check that the metafiles list every config, and say of it what it says.

python tools/check_metafiles.py
"""

import argparse
import sys
from pathlib import Path

from mmivit.analysis.metafiles import check
from mmivit.apis.command import errors_told


def main() -> None:
    parser = argparse.ArgumentParser(description='Compare the metafiles with the configs.')
    parser.add_argument(
        'root',
        nargs='?',
        type=Path,
        default=Path(__file__).parent.parent,
        help='folder with model-index.yml and configs/; this repository if not given',
    )
    with errors_told(OSError):
        problems = check(parser.parse_args().root)
    print('\n'.join(problems) or 'Metafiles and configs agree.')
    sys.exit(bool(problems))


if __name__ == '__main__':
    main()
