"""The tests marked `matrix`, run in several environments, and the README's table of the outcome.

    python -m tests.matrix NAME=VENV ...

Exits with 1 if a test failed.
"""

import json
import platform
import re
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from datetime import date
from pathlib import Path
from xml.etree import ElementTree

from mmivit.doctor import DISTRIBUTIONS
from tests.conftest import ROOT

README = ROOT / 'README.md'
MODULES = {**DISTRIBUTIONS, 'opencv': ('opencv-python-headless',)}
# Where the table lies in the README.
BLOCK = re.compile(r'(?<=<!-- written by make test-matrix -->\n).*(?=<!-- end -->)', re.DOTALL)


def main(argv: list[str]) -> int:
    environments = dict(arg.split('=', 1) for arg in argv)
    versions = {name: installed(venv) for name, venv in environments.items()}
    outcomes = {}
    for name, venv in environments.items():
        print(f'==> Testing in {venv}: {name}', flush=True)
        outcomes[name] = run_tests(venv)
    text, passed = report(versions, outcomes)
    README.write_text(BLOCK.sub(lambda _: text, README.read_text()))
    print(text)
    return 0 if passed else 1


def installed(venv: str) -> dict[str, str]:
    """What the distribution of each module is, by the module: its version, of a fork its name."""
    command = [f'{venv}/bin/python', '-m', 'pip', 'list', '--format', 'json']
    listed = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    found = {package['name']: package['version'].split('+')[0] for package in listed}
    return {
        module: ', '.join(
            found[d] if d == distributions[0] else f'{d} {found[d]}'
            for d in distributions
            if d in found
        )
        for module, distributions in MODULES.items()
    }


def run_tests(venv: str) -> dict[str, list[tuple[str, str, str]]]:
    """Outcome ('passed', 'failed', 'skipped'), test and reason of the tests of each check."""
    outcomes = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder, 'results.xml')
        command = [f'{venv}/bin/python', '-m', 'pytest', '-m', 'matrix', f'--junitxml={results}']
        status = subprocess.run(command, cwd=ROOT).returncode
        if status not in (0, 1):  # pytest's own: all passed, some failed
            sys.exit(f'pytest ended with status {status} in {venv}')
        for case in ElementTree.parse(results).iter('testcase'):
            # A file that cannot be imported is a case without properties.
            checks = [p.get('value') for p in case.iter('property') if p.get('name') == 'matrix']
            outcome, reason = 'passed', ''
            for kind, name in (('skipped', 'skipped'), ('error', 'failed'), ('failure', 'failed')):
                if (element := case.find(kind)) is not None:
                    outcome, reason = name, why(element.get('message'))
            outcomes[checks[0] if checks else 'import'].append((outcome, case.get('name'), reason))
    return outcomes


def why(message: str) -> str:
    """The line of pytest's message that names the error; of a command's, its last one."""
    errors = re.findall(r'^(?:E  +)?(\w[\w.]*(?:Error|Exception): .+)$', message, re.MULTILINE)
    return errors[-1] if errors else message.splitlines()[0]


def report(versions: dict, outcomes: dict) -> tuple[str, bool]:
    """The table as Markdown, with what failed and was skipped below, and whether all passed."""
    names = list(versions)
    rows = [['', *names], ['---'] * (len(names) + 1)]
    rows += [[module, *(versions[n][module] for n in names)] for module in versions[names[0]]]
    notes: dict[str, list[str]] = {}  # what is said below, and in which environments
    for check in dict.fromkeys(check for name in names for check in outcomes[name]):
        row = [f'**{check}**']
        for name in names:
            counts = Counter(outcome for outcome, _, _ in outcomes[name][check])
            row.append(', '.join(f'{counts[kind]} {kind}' for kind in sorted(counts)))
        rows.append(row)
        for name in names:
            for outcome, test, reason in outcomes[name][check]:
                if outcome != 'passed':
                    note = f'{outcome}: `{test.partition("[")[0]}`: {reason}'
                    notes.setdefault(note, []).append(name)
    lines = ['| ' + ' | '.join(row) + ' |' for row in rows]
    lines += ['', f'Python {platform.python_version()}, {platform.machine()}, {date.today()}.', '']
    for note, where in notes.items():
        lines.append(f'- {", ".join(dict.fromkeys(where))} {note}')
    failed = any(note.startswith('failed') for note in notes)
    return '\n'.join(lines) + '\n', not failed


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
