"""The tutorial: its commands are ones that the tools take; or, given the photographs, all of it.

    MMIVIT_WHEELS=wheels python -m pytest -n 0 tests/test_tutorial.py

where both wheels of docs/tutorial.md were unpacked; half an hour on 2 cores.
"""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from mmivit.apis.new_project import BLOCK
from tests import tutorial
from tests.conftest import CONFIGS, ROOT

TEXT = tutorial.DOCUMENT.read_text()
WHEELS = os.environ.get('MMIVIT_WHEELS')


def test_every_block_is_shell_and_every_tool_is_there():
    blocks = tutorial.blocks(TEXT)
    assert TEXT.count('```') == 2 * (len(blocks) + TEXT.count('```\nCOCO'))
    for block in blocks:
        done = subprocess.run(['bash', '-n', '-c', block], capture_output=True, text=True)
        assert not done.returncode, done.stderr
        for script, heredoc in re.findall(r"(?s)python - <<'(\w+)'\n(.*?)\n\1\n", block):
            compile(heredoc, script, 'exec')


def test_options_and_settings_are_the_tools_own():
    """Options by each tool's text, settings by the block of every example."""
    commands = [
        shlex.split(line)
        for block in tutorial.blocks(TEXT)
        for line in block.replace('\\\n', ' ').splitlines()
        if line.startswith('python tools/')
    ]
    assert len(commands) == 8
    for _, tool, *words in commands:
        text = (ROOT / tool).read_text() + (ROOT / 'mmivit/apis/command.py').read_text()
        for word in words:
            assert not word.startswith('--') or f"'{word}'" in text, (tool, word)
        if '--set' in words:
            example = 'segmentation' if '--classes' in words else 'boxes'
            block = BLOCK.search((CONFIGS / f'examples/your_dataset_{example}.py').read_text())[2]
            for setting in words[words.index('--set') + 1 :]:
                assert f'\n{setting.partition("=")[0]} = ' in block, setting


@pytest.mark.slow
@pytest.mark.skipif(not WHEELS, reason='needs the photographs: MMIVIT_WHEELS=FOLDER')
def test_the_whole_tutorial(tmp_path):
    tutorial.run(Path(WHEELS), tmp_path / 'walk')
