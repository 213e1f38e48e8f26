"""What the commands in tools/ share: options, and errors told in place of a traceback."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from mmengine.config import DictAction

from mmivit.apis.quiet import quiet
from mmivit.errors import UserError


@contextmanager
def errors_told(*others: type[Exception], status: int = 1) -> Iterator[None]:
    """End the command at a UserError with its message, the command's name in front.

    Args:
        others: exceptions that are told so as well; any further one is a fault of ours, and keeps
            its traceback.
        status: what the command exits with.
    """
    told: tuple[type[Exception], ...] = (UserError, *others)
    try:
        yield
    except told as error:
        print(f'{Path(sys.argv[0]).stem}: {error}', file=sys.stderr)
        sys.exit(status)


def add_cfg_options(parser: ArgumentParser) -> None:
    """Add ``--cfg-options``."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='override settings of the config: key.subkey=value, lists as key="[a,b]"',
    )


def add_verbose(parser: ArgumentParser) -> None:
    """Add ``--verbose``, for :func:`quietly`."""
    parser.add_argument(
        '--verbose', action='store_true', help='show what is left out as noise of other packages'
    )


def quietly(args: Namespace) -> AbstractContextManager[None]:
    """Noise of other packages is left out, unless ``--verbose``, which is taken from ``args``."""
    return nullcontext() if vars(args).pop('verbose') else quiet()


def add_force(parser: ArgumentParser, what: str = 'what was written earlier') -> None:
    """Add ``--force``, which replaces ``what``."""
    parser.add_argument('--force', action='store_true', help=f'replace {what}')


def add_launcher(parser: ArgumentParser) -> None:
    """Add ``--launcher``, and ``--local_rank``, which launchers of older torch pass."""
    parser.add_argument('--launcher', choices=('none', 'pytorch', 'slurm', 'mpi'), default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)


def parse_launched(parser: ArgumentParser) -> Namespace:
    """Parse; the local rank goes where MMEngine looks for it, and is no argument of ours."""
    args = parser.parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    del args.local_rank
    return args
