"""What the tools share."""

import subprocess

import pytest

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
