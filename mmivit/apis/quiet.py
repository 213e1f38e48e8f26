"""What other packages print and nobody here can mend, counted in place of printed.

Left out are warnings of deprecation that packages raise about each other's code, the messages of
:data:`NOISE`, and on the screen those of :data:`DUMPS`, where a log file has them. All else stays:
a warning that is not known for noise may be about one's data, settings or machine.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from mmengine.logging import MMLogger

OWN = Path(__file__).parents[1]
INSTALLED = tuple({Path(sysconfig.get_paths()[key]) for key in ('purelib', 'platlib')})
DEPRECATION = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)
# What is true of every run, whatever the user does.
NOISE = re.compile(
    '|'.join(
        (
            r'Failed to search registry with scope',  # MMEngine then takes its own, as is meant
            r'The prefix is not set in metric class',  # of mmdet's and mmseg's own metrics
            r'"FileClient" will be deprecated',  # MMEngine about its own hooks
            r'"HardDiskBackend" is the alias of "LocalBackend"',
            r'``build_loss`` would be deprecated',  # mmseg about its own heads
            r'DeprecationWarning: `num_anchors`',  # mmdet about its own heads
            r'Default ``avg_non_ignore`` is False',  # mmseg's loss, its usual way to average
            r'Failed to add <class .*LocalVisBackend.*save_dir',  # predict.py writes by itself
            r'Warning: The \w+ is out of bounds, the drawn',  # what is found may end at the border
            r'The draw is False, it means that the hook for vis',  # unless --show is given
            r'Distributed training is not used, all SyncBatchNorm',  # as is meant
        )
    )
)
# Hundreds of lines at the start of a run, in which those that matter are not found.
DUMPS = re.compile(
    r'\n-+\nSystem environment:|Config:\n|Hooks will be executed in the following order'
    r'|paramwise_options -- '
    r'|\S+ is skipped since its requires_grad='
)


class _Counts:
    noise = dumped = 0
    file: str | None = None  # the log that has what was dumped


@contextmanager
def quiet(told: bool = True) -> Iterator[None]:
    """Leave noise out.

    Args:
        told: at the end a line on standard error says how much, and where it is.
    """
    counts = _Counts()
    stock = MMLogger.callHandlers

    def call_handlers(logger: MMLogger, record: logging.LogRecord) -> None:
        screen = [h for h in logger.handlers if not isinstance(h, logging.FileHandler)]
        text = record.getMessage()
        in_file = len(screen) < len(logger.handlers)
        is_noise = record.levelno <= logging.WARNING and NOISE.search(text)
        is_dump = record.levelno <= logging.WARNING and DUMPS.match(text) and in_file
        if not is_noise and not is_dump:
            stock(logger, record)
            return
        counts.noise += bool(is_noise)
        counts.dumped += not is_noise
        for handler in logger.handlers:  # files have all
            if handler not in screen and record.levelno >= handler.level:
                counts.file = handler.baseFilename
                handler.handle(record)

    with warnings.catch_warnings():
        shown = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            theirs = is_of_other_packages(filename) and issubclass(category, DEPRECATION)
            if theirs or NOISE.search(str(message)):
                counts.noise += 1
            else:
                shown(message, category, filename, lineno, file, line)

        warnings.showwarning = show
        MMLogger.callHandlers = call_handlers
        try:
            yield
        finally:
            MMLogger.callHandlers = stock
            main = os.environ.get('RANK', '0') == '0'
            if told and main and (counts.noise or counts.dumped):
                print(_told(counts), file=sys.stderr)


def is_quiet() -> bool:
    """Is noise left out at present?"""
    return MMLogger.callHandlers.__module__ == __name__


def is_of_other_packages(filename: str) -> bool:
    """Is a source file one of the installed packages', mmivit left out?"""
    path = Path(filename)
    return any(map(path.is_relative_to, INSTALLED)) and not path.is_relative_to(OWN)


def _told(counts: _Counts) -> str:
    parts = [f'{counts.noise} warnings of other packages that no setting mends'] * bool(
        counts.noise
    )
    listed = f'{counts.dumped} entries on config, environment, hooks and rates'
    parts += [listed] * bool(counts.dumped)
    where = f', which are in {counts.file}' if counts.file else ''
    return f'Left out: {" and ".join(parts)}{where}. --verbose shows all.'
