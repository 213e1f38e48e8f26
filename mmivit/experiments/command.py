"""The command line of the experiments that are made on drawn images and on photographs alike."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any


def read_command(
    description: str, report: str, lengths: Mapping[str, str], on_drawn: Any, on_photographs: Any
) -> Namespace:
    """Read it.

    Args:
        description: of the command.
        report: names of what is written into the folder beside data and weights.
        lengths: fields of a budget that count iterations, and of what, a phrase each.
        on_drawn: the budget on drawn images, a dataclass.
        on_photographs: that on photographs.

    Returns:
        ``folder``, ``photographs`` (where the wheels were unpacked, or None), ``title``, ``seeds``,
        ``jobs``, and the ``budget`` with the lengths that were given.
    """
    parser = ArgumentParser(description=description, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument('folder', type=Path, help=f'data, weights, runs.jsonl, {report}')
    parser.add_argument(
        '--photographs',
        type=Path,
        metavar='WHEELS',
        help='folder where the wheels of elpv-dataset and deepforest were unpacked',
    )
    parser.add_argument('--seeds', type=int, nargs='+', default=(0, 1, 2))
    for name, what in lengths.items():
        defaults = f'{getattr(on_drawn, name)}, {getattr(on_photographs, name)} on photographs'
        parser.add_argument(f'--{name}', type=int, help=f'iterations {what} ({defaults})')
    parser.add_argument(
        '--jobs', type=int, default=0, help='runs at a time; as many as CPU cores, up to 8'
    )
    args = parser.parse_args()
    given = {name: getattr(args, name) for name in lengths if getattr(args, name) is not None}
    args.budget = replace(on_photographs if args.photographs else on_drawn, **given)
    args.title = 'Photographs' if args.photographs else 'Drawn images'
    return args
