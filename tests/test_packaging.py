"""The source distribution, the wheel built from it, its installation, and what mim makes of it."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from email.parser import Parser
from importlib import metadata

import pytest
from packaging.requirements import Requirement

from mmivit.doctor import REQUIREMENTS
from tests.conftest import CONFIGS, ROOT, TIMEOUT, link_installed
from tests.matrix import BLOCK, MODULES, README

SOURCES = ('mmivit', 'configs', 'tools', 'requirements', 'setup.py', 'pyproject.toml')
SOURCES += (
    'MANIFEST.in',
    'README.md',
    'CHANGELOG.md',
    'CONTRIBUTING.md',
    'LICENSE',
    'model-index.yml',
)


def run(*command, cwd):
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        env={key: v for key, v in os.environ.items() if key != 'PYTHONPATH'},
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return done.stdout


def pins(stack):
    """The versions of a stack, by distribution."""
    files = [ROOT / 'requirements/constraints.txt']
    if stack:
        files.append(ROOT / 'requirements/matrix' / stack / 'constraints.txt')
    found = {}
    for file in files:
        for name, version in re.findall(r'^([\w.-]+)={2,3}(\S+)$', file.read_text(), re.MULTILINE):
            found[name] = version
    return found


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    """The folder in which the standard front-end leaves both distributions."""
    folder = tmp_path_factory.mktemp('packaging')
    for name in SOURCES:  # nothing is written into the repository
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns('.mim', '__pycache__')
            shutil.copytree(ROOT / name, folder / 'clone' / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, folder / 'clone' / name)
    run(sys.executable, '-m', 'build', '--no-isolation', '--outdir', folder, 'clone', cwd=folder)
    return folder


@pytest.fixture(scope='module')
def python(tmp_path_factory):
    """The python of an environment with all that is installed here but mmivit, and a pip."""
    folder = tmp_path_factory.mktemp('beside')
    packages = folder / 'packages'
    link_installed(packages, without=('mmivit', '__editable__'))
    venv.create(folder / 'venv', with_pip=False, symlinks=True)
    (site,) = (folder / 'venv').glob('lib/python*/site-packages')
    (site / 'packages.pth').write_text(str(packages))
    return folder / 'venv/bin/python'


@pytest.fixture(scope='module')
def frozen(built, python):
    """The versions before and after the wheel was installed, of which nothing is downloaded."""
    before = run(python, '-m', 'pip', 'freeze', '--all', cwd=built).splitlines()
    wheel = next(built.glob('*.whl'))
    run(python, '-m', 'pip', 'install', '--no-index', wheel, cwd=built)
    return before, run(python, '-m', 'pip', 'freeze', '--all', cwd=built).splitlines()


def test_a_wheel_built_from_the_sdist_carries_the_mim_extension(built):
    with tarfile.open(next(built.glob('*.tar.gz'))) as archive:
        assert any(name.endswith('/requirements/constraints.txt') for name in archive.getnames())
    with zipfile.ZipFile(next(built.glob('*.whl'))) as wheel:
        names = set(wheel.namelist())
        described = next(n for n in names if n.endswith('METADATA'))
        required = [
            line for line in wheel.read(described).decode().splitlines() if 'Requires-Dist' in line
        ]
    for path in ('configs', 'tools'):
        for file in (ROOT / path).rglob('*'):
            if file.is_file() and '__pycache__' not in file.parts:
                assert f'mmivit/.mim/{file.relative_to(ROOT)}' in names
    assert 'mmivit/.mim/model-index.yml' in names
    assert 'mmivit/models/ivit.py' in names
    assert {'mmivit/py.typed', 'mmivit/utils/report_page.html'} <= names
    assert [line for line in required if 'extra' not in line] == ['Requires-Dist: wrapt']


def test_the_extras_admit_the_versions_tested(built):
    with zipfile.ZipFile(next(built.glob('*.whl'))) as wheel:
        described = wheel.read(next(n for n in wheel.namelist() if n.endswith('METADATA')))
    wanted = Parser().parsestr(described.decode()).get_all('Requires-Dist')
    for stack in ('', 'torch-2.1'):
        versions = pins(stack)
        for requirement in map(Requirement, wanted):
            assert requirement.specifier.contains(versions[requirement.name]), requirement


def test_installing_touches_no_version(frozen):
    before, after = frozen
    assert any(line.startswith(('mmdet==', 'onedl-mmdetection==')) for line in before)
    (added,) = set(after) - set(before)
    assert added.startswith('mmivit @ ')
    assert set(before) < set(after)


@pytest.mark.matrix('mim')
@pytest.mark.usefixtures('frozen')
@pytest.mark.parametrize(
    ('module', 'config'),
    # By its path, and by its name alone, which mim looks up in the package it is asked for.
    [('mmdet', CONFIGS / 'mask_rcnn_ivit_shapes.py'), ('mmivit', 'upernet_ivit_shapes.py')],
)
def test_mim_trains_and_tests(module, config, python, shapes):
    # mim is asked for a distribution: mmdet's fork has another name than its module.
    package = 'mmivit' if module == 'mmivit' else metadata.packages_distributions()[module][0]
    options = ('train_dataloader.batch_size=2', 'train_dataloader.dataset.indices=4')
    if module == 'mmdet':
        options += ('train_cfg.max_epochs=1', 'model.test_cfg.rcnn.score_thr=0.0')
        last, metric = 'epoch_1.pth', 'coco/segm_mAP_50'
    else:
        options += ('train_cfg.max_iters=2', 'train_cfg.val_interval=2')
        options += ('default_hooks.checkpoint.interval=2',)
        last, metric = 'iter_2.pth', 'mIoU'
    mim = (python, '-m', 'mim')
    where = (config, '--work-dir', f'mim_{module}')
    said = run(*mim, 'train', package, *where, '--cfg-options', *options, cwd=shapes)
    assert 'Training finished successfully' in said
    checkpoint = shapes / f'mim_{module}' / last
    said = run(*mim, 'test', package, *where, '--checkpoint', checkpoint, cwd=shapes)
    assert 'Testing finished successfully' in said
    assert metric in said


def test_the_readme_names_the_versions_pinned():
    header, _, *rows = (
        [cell.strip() for cell in line.strip('|').split('|')]
        for line in BLOCK.search(README.read_text())[0].splitlines()
        if line.startswith('|')
    )
    stacks = [pins('' if name == 'pinned' else name) for name in header[1:]]
    for module, *versions in rows:
        for stack, cell in zip(stacks, versions):
            if module in MODULES:
                name, _, version = cell.rpartition(' ')
                assert stack[name or MODULES[module][0]] == version, (module, cell)
    assert {row[0] for row in rows} >= set(MODULES)
    assert pins('')['mmcv'] == REQUIREMENTS['mmcv'].partition('==')[2]
