"""Says in one message what this machine lacks for `make setup`. Runs on any Python 3."""

import os
import shlex
import shutil
import sys
import sysconfig

WANTED = (3, 11)


def main():
    found = '.'.join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] != WANTED:
        sys.exit(
            'mmivit is set up on Python 3.11, for which its versions are pinned; found '
            f'{found} ({sys.executable}).\n'
            'Install it (Debian, Ubuntu: apt install python3.11 python3.11-dev python3.11-venv) '
            'and run: make setup PYTHON=python3.11'
        )
    missing = []
    if not shutil.which(shlex.split(os.environ.get('CXX') or 'c++')[0]):
        missing.append(('a C++ compiler', 'build-essential'))
    if not os.path.exists(os.path.join(sysconfig.get_paths()['include'], 'Python.h')):
        missing.append(("Python's headers", 'python3.11-dev'))
    try:
        import ensurepip  # noqa: F401
    except ImportError:
        missing.append(("Python's venv", 'python3.11-venv'))
    if missing:
        sys.exit(
            "mmcv's operators are compiled on this machine, and it has not got {}.\n"
            'Install (Debian, Ubuntu): apt install {}'.format(
                ', '.join(what for what, _ in missing),
                ' '.join(package for _, package in missing),
            )
        )


if __name__ == '__main__':
    main()
