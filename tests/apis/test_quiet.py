"""Which messages are left out on the screen, and that log files keep them."""

import sys
import warnings
from argparse import Namespace
from pathlib import Path

import numpy
import pytest
from mmengine.logging import MMLogger

from mmivit.apis.command import quietly
from mmivit.apis.quiet import OWN

INSTALLED = str(Path(numpy.__file__))
PREFIX = 'The prefix is not set in metric class IoUMetric.'


def warn(text, category, filename):
    warnings.warn_explicit(text, category, filename, 1)


def start_logging(tmp_path):
    """A run's logger, which writes to a file and to the screen as it is now."""
    return MMLogger.get_instance('run', log_file=str(tmp_path / 'run.log'))


def test_noise_is_counted_and_all_else_is_shown(tmp_path, capfd, monkeypatch):
    logger = start_logging(tmp_path)
    # In the place of pytest's own, which collects warnings.
    monkeypatch.setattr(warnings, 'showwarning', lambda text, *_: print(text, file=sys.stderr))
    with quietly(Namespace(verbose=False)):
        logger.warning(PREFIX)
        logger.info('Config:\nmodel = dict()')
        logger.info('paramwise_options -- norm.weight:weight_decay=0')
        logger.warning('stem.weight is skipped since its requires_grad=False')
        logger.info('IViT: 143 of 143 tensors found')
        logger.warning('Total batch is 4')
        logger.error('Config:\nbroken')
        warn('old name', FutureWarning, INSTALLED)
        warn('``build_loss`` would be deprecated soon', UserWarning, INSTALLED)
        warn('Warning: The polygon is out of bounds, the drawn', UserWarning, INSTALLED)
        warn('too many workers for this machine', UserWarning, INSTALLED)
        warn('my own old name', FutureWarning, '/home/me/my_config.py')
        warn('ours', FutureWarning, str(OWN / 'registry.py'))
    screen = ''.join(capfd.readouterr())
    log = (tmp_path / 'run.log').read_text()
    for text in ('prefix is not set', 'model = dict', 'paramwise', 'skipped since'):
        assert text in log
    for text in ('143 of 143', 'Total batch'):
        assert text in log
    for text in (
        'prefix is not set',
        'model = dict',
        'paramwise',
        'skipped since',
        ' old name\n',
        'build_loss',
        'polygon',
    ):
        assert text not in screen.replace('my own old name', '')
    for text in ('143 of 143', 'Total batch', 'broken', 'too many workers', 'my own old', 'ours'):
        assert text in screen
    last = screen.splitlines()[-1]
    assert last.startswith('Left out: 4 warnings of other packages that no setting mends and 3 ')
    assert str(tmp_path / 'run.log') in last


def test_without_a_file_nothing_but_noise_is_left_out(capfd):
    with quietly(Namespace(verbose=False)):
        MMLogger.get_current_instance().info('Config:\nmodel = dict()')
    out, err = capfd.readouterr()
    assert 'model = dict()' in out
    assert not err


def test_verbose_shows_all_and_errors_come_last(tmp_path, capfd):
    logger = start_logging(tmp_path)
    args = Namespace(verbose=True, config='x.py')
    with quietly(args):
        logger.warning(PREFIX)
    assert vars(args) == dict(config='x.py')
    assert PREFIX in capfd.readouterr().out

    def fails():
        logger.warning(PREFIX)
        sys.exit('failed')

    with pytest.raises(SystemExit), quietly(Namespace(verbose=False)):
        fails()
    assert 'Left out: 1 ' in capfd.readouterr().err
    logger.warning('shown again')
    assert 'shown again' in capfd.readouterr().out
