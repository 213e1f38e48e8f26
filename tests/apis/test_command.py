"""What the tools share."""

import os
import runpy
import subprocess
from argparse import ArgumentParser
from pathlib import Path

import pytest

from mmivit.apis.command import add_cfg_options, add_launcher, errors_told, parse_launched
from mmivit.errors import CheckpointError
from tests.conftest import ROOT, run_tool


@pytest.mark.parametrize('tool', ['train.py', 'test.py', 'predict.py'])
def test_missing_files_are_named_without_a_traceback(tool, tmp_path):
    args = {'train.py': (), 'test.py': ('x.pth',), 'predict.py': ('x.pth', 'x.jpg')}[tool]
    done = run_tool(tool, 'nowhere.py', *args, cwd=tmp_path)
    assert done.returncode == 1
    assert 'nowhere.py' in done.stderr
    assert 'Traceback' not in done.stderr


@pytest.mark.parametrize('script', ['dist_train.sh', 'dist_test.sh', 'slurm_train.sh'])
def test_launch_scripts_print_their_usage(script, tmp_path):
    done = subprocess.run([ROOT / 'tools' / script], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert 'Usage:' in done.stdout


@pytest.mark.parametrize('status', [1, 2])
def test_errors_are_told_in_place_of_a_traceback(status, monkeypatch, capsys):
    monkeypatch.setattr('sys.argv', ['tools/draw.py'])
    for error in (CheckpointError('x.pth: no'), FileNotFoundError('x.pth: no')):
        with pytest.raises(SystemExit) as ended, errors_told(OSError, status=status):
            raise error
        assert ended.value.code == status
        assert capsys.readouterr().err == 'draw: x.pth: no\n'
    with pytest.raises(ZeroDivisionError), errors_told(OSError):
        _ = 1 / 0


@pytest.mark.parametrize(('given', 'rank'), [((), '0'), (('--local-rank', '3'), '3')])
def test_the_local_rank_goes_where_mmengine_looks(given, rank, monkeypatch):
    monkeypatch.delenv('LOCAL_RANK', raising=False)
    monkeypatch.setattr('sys.argv', ['train.py', '--launcher', 'pytorch', *given])
    parser = ArgumentParser()
    add_launcher(parser)
    add_cfg_options(parser)
    assert vars(parse_launched(parser)) == dict(launcher='pytorch', cfg_options=None)
    assert os.environ.pop('LOCAL_RANK') == rank


@pytest.mark.parametrize('tool', sorted(Path(ROOT, 'tools').rglob('*.py'), key=str))
def test_every_tool_says_what_it_takes(tool, monkeypatch, capsys):
    monkeypatch.setattr('sys.argv', [str(tool), '--help'])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(tool), run_name='__main__')
    assert ended.value.code == 0
    assert 'usage: ' in capsys.readouterr().out
