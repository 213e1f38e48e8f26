"""Runs every command of docs/tutorial.md as it is written there.

    python -m tests.tutorial WHEELS FOLDER

WHEELS is where both wheels were unpacked, so that nothing is downloaded; FOLDER is new and takes
all that the commands write. Prints each block, how long it took and what it said of scores.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
DOCUMENT = ROOT / 'docs' / 'tutorial.md'
SCORE = re.compile(r'(bbox_mAP_50|mIoU): *([0-9.]+)')
FETCHES = 'pip download'


def blocks(text: str) -> list[str]:
    """The document's shell blocks, in order."""
    return re.findall(r'(?s)```bash\n(.*?)```', text)


def run(wheels: Path, folder: Path) -> None:
    """Run the blocks in a folder that has the repository's commands; stops at one that fails."""
    folder.mkdir(parents=True)
    for name in ('tools', 'configs'):
        (folder / name).symlink_to(ROOT / name)
    (folder / 'wheels').symlink_to(wheels.resolve())
    python = Path(sys.executable).parent
    env = {
        **os.environ,
        'PATH': f'{python}:{os.environ["PATH"]}',
        'PYTHONPATH': f'{ROOT}:{os.environ.get("PYTHONPATH", "")}',
    }
    for block in blocks(DOCUMENT.read_text()):
        if FETCHES in block:
            continue
        print(f'\n$ {block.strip()}', flush=True)
        begun = time.time()
        done = subprocess.run(
            ['bash', '-e', '-c', block], cwd=folder, env=env, capture_output=True, text=True
        )
        (folder / 'log.txt').open('a').write(f'$ {block}\n{done.stdout}{done.stderr}\n')
        scores = [f'{name} {value}' for name, value in SCORE.findall(done.stdout)]
        print(f'    {time.time() - begun:.0f} s; {", ".join(scores) or "no score"}', flush=True)
        if done.returncode:
            sys.exit(f'{done.stdout[-2000:]}{done.stderr[-2000:]}\nexit {done.returncode}')


if __name__ == '__main__':
    run(Path(sys.argv[1]), Path(sys.argv[2]))
