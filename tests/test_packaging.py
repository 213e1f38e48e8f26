"""The source distribution, the wheel built from it, and what mim finds inside."""

import subprocess
import sys
import tarfile
import zipfile

from tests.conftest import ROOT


def test_a_wheel_built_from_the_sdist_carries_the_mim_extension(tmp_path):
    def setup(folder, *args):
        done = subprocess.run(
            [sys.executable, 'setup.py', *args], cwd=folder, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-2000:]

    egg = ('egg_info', '--egg-base', tmp_path)  # nothing is written into the repository
    setup(ROOT, *egg, 'sdist', '--dist-dir', tmp_path)
    with tarfile.open(next(tmp_path.glob('*.tar.gz'))) as archive:
        archive.extractall(tmp_path / 'source', filter='data')
    source = next((tmp_path / 'source').iterdir())
    setup(source, 'bdist_wheel', '--dist-dir', tmp_path)
    with zipfile.ZipFile(next(tmp_path.glob('*.whl'))) as wheel:
        names = set(wheel.namelist())
        metadata = next(n for n in names if n.endswith('METADATA'))
        required = [
            line for line in wheel.read(metadata).decode().splitlines() if 'Requires-Dist' in line
        ]
    for path in ('configs', 'tools'):
        for file in (ROOT / path).rglob('*'):
            if file.is_file() and '__pycache__' not in file.parts:
                assert f'mmivit/.mim/{file.relative_to(ROOT)}' in names
    assert 'mmivit/.mim/model-index.yml' in names
    assert 'mmivit/models/ivit.py' in names
    assert [line for line in required if 'extra' not in line] == ['Requires-Dist: wrapt']
