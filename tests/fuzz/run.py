"""Fuzz for some time and say what was found.

    python -m tests.fuzz.run SECONDS [TARGET ...]

Each target runs in a process and a temporary folder of its own. What is found is kept in
``work_dirs/fuzz``, with the end of the log.
"""

import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
KEPT = ROOT / 'work_dirs' / 'fuzz'
NAMES = ('checkpoints', 'converter', 'images')


def fuzz(name: str, seconds: int, folder: Path) -> tuple[str, bool]:
    """One target for some time: a line of a table, and whether something was found."""
    command = [sys.executable, '-m', 'tests.fuzz.targets', name, str(folder)]
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
    environment |= {'HOME': str(folder), 'PYTHONDONTWRITEBYTECODE': '1'}
    log = folder / 'log'
    start, used = time.monotonic(), _cpu_seconds()
    with open(log, 'wb') as file:
        done = subprocess.run(
            [*command, f'-max_total_time={seconds}'],
            env=environment,
            cwd=ROOT,
            stderr=file,
            stdout=file,
        )
    text = log.read_text(errors='replace')
    ran = re.search(r'^Done \d+ runs in (\d+) second', text, re.M)  # without the start
    minutes = (int(ran[1]) if ran else time.monotonic() - start) / 60
    executions = re.findall(r'^#(\d+)\s', text, re.M)
    covered = re.findall(r'cov: (\d+)', text)
    found = sorted((folder / 'findings').glob('*')) if (folder / 'findings').exists() else []
    failed = bool(found) or done.returncode != 0
    if failed:
        shutil.copytree(folder / 'findings', KEPT / name, dirs_exist_ok=True)
        (KEPT / name / 'log').write_text(text[-10_000:])
    cpu = (_cpu_seconds() - used) / 60
    row = f'{name:<12} {minutes:8.1f} {cpu:8.1f} {int(executions[-1]) if executions else 0:11,d}'
    return f'{row} {int(covered[-1]) if covered else 0:9,d} {len(found):9d}', failed


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    seconds, names = int(sys.argv[1]), sys.argv[2:] or NAMES
    print(f'{"target":<12}  minutes  CPU min  executions  coverage  findings')
    failures = []
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            row, failed = fuzz(name, seconds, Path(folder))
        print(row, flush=True)
        failures += [name] if failed else []
    if failures:
        sys.exit(f'see {KEPT}/{{{",".join(failures)}}}: the inputs, and the end of the log')


if __name__ == '__main__':
    main()
