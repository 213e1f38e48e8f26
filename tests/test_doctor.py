"""The doctor on environments that are broken on purpose, each made of links and fakes."""

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from mmivit.doctor import explain, find_installed, install, misfits
from tests.conftest import FORKS, ROOT, link_installed

TIMEOUT = 900  # the machine may be busy
BUILD = 'MMCV_WITH_OPS=1 python -m pip install --no-cache-dir --no-build-isolation --no-binary'


def test_a_file_in_the_way_is_named_not_the_package_behind_it(tmp_path, monkeypatch):
    (tmp_path / 'timm.py').write_text('raise ValueError')
    monkeypatch.delitem(sys.modules, 'timm', raising=False)
    installed = find_installed()
    assert 'pip' in explain('timm', 'ValueError', installed)[1]
    monkeypatch.syspath_prepend(tmp_path)
    why, command = explain('timm', 'ValueError', installed)
    assert f'timm comes from {tmp_path}/timm.py, not from what is installed' in why
    assert 'pip' not in command
    assert 'PYTHONPATH' in command


@pytest.fixture(scope='module')
def empty(tmp_path_factory):
    """The python of an environment in which nothing is installed."""
    folder = tmp_path_factory.mktemp('empty')
    venv.create(folder, with_pip=False, symlinks=True)
    return folder / 'bin' / 'python'


class Site:
    """A folder of packages: links to installed ones, and fakes."""

    def __init__(self, folder, python):
        self.folder, self.python = folder / 'site', python
        self.folder.mkdir()

    def link(self, *wanted, without=()):
        """Link installed packages: those named, or all of them without some."""
        link_installed(self.folder, wanted, without)

    def fake(self, module, version, code='', distribution=None, **files):
        (self.folder / module).mkdir(exist_ok=True)
        for name, text in {'__init__': f'__version__ = {version!r}\n{code}', **files}.items():
            (self.folder / module / f'{name}.py').write_text(text)
        info = self.folder / f'{distribution or module}-{version}.dist-info'
        info.mkdir()
        name = distribution or module
        info.joinpath('METADATA').write_text(f'Name: {name}\nVersion: {version}\n')

    def run(self, *args):
        env = {
            **os.environ,
            'PYTHONPATH': f'{self.folder}{os.pathsep}{ROOT}',
            'PATH': f'{Path(self.python).parent}{os.pathsep}{os.environ["PATH"]}',
        }
        return subprocess.run(
            [self.python, *args],
            cwd=self.folder.parent,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            env=env,
        )

    def doctor(self):
        """The exit status, and the command that mends each problem, by the problem."""
        done = self.run('-m', 'mmivit.doctor', '--timeout', str(TIMEOUT))
        assert not done.stderr
        print(done.stdout)  # for pytest -rP
        mends, problems = {}, []
        for line in done.stdout.splitlines():
            if line.startswith('Problem: '):
                problems.append(line[9:])
            elif line.startswith('  mend:  '):
                mends.update(dict.fromkeys(problems, line[9:]))
                problems = []
        return done.returncode, mends, done.stdout


@pytest.fixture
def site(tmp_path, empty):
    return Site(tmp_path, empty)


def test_nothing_is_installed_and_the_package_says_where_to_ask(site):
    status, mends, _ = site.doctor()
    assert status == 1
    assert mends == {
        f'{module} is not found, and mmivit needs it': f'python -m pip install {module}'
        for module in ('numpy', 'wrapt', 'torch', 'mmengine')
    }

    done = site.run('-c', 'import mmivit.models')
    last = done.stderr.strip().splitlines()[-2:]
    assert last[0].startswith('ImportError: mmivit needs torch, numpy, mmengine and wrapt')
    assert last[1].endswith('python -m mmivit.doctor')


def test_the_doctor_itself_imports_the_standard_library_alone(tmp_path):
    done = Site(tmp_path, sys.executable).run('-X', 'importtime', '-m', 'mmivit.doctor', '--help')
    imported = {line.split('|')[-1].strip() for line in done.stderr.splitlines()}
    assert 'mmivit.version' in imported
    assert not {'torch', 'numpy', 'mmengine', 'wrapt', 'mmivit.registry'} & imported


def test_mmcv_without_its_operators(site):
    site.link(without=('mmcv', 'mmdet', 'mmseg', 'onedl_mm', 'timm', 'torchvision'))
    site.fake('mmcv', '2.1.0', distribution='mmcv_lite', ops='import mmcv._ext')
    status, mends, said = site.doctor()
    assert status == 1
    ((problem, mend),) = mends.items()
    assert problem.startswith('mmcv was installed without its compiled operators: ')
    assert mend.startswith('python -m pip uninstall --yes mmcv-lite && ')
    assert mend.endswith(BUILD + ' mmcv mmcv==2.1.0')
    assert "IViT in mmengine  type='mmivit.IViT' resolves" in said  # all the same


@pytest.mark.skipif(FORKS, reason="mmdet's fork takes any mmcv")
def test_mmcv_of_a_version_that_mmdet_refuses(site):
    site.link(without=('mmcv', 'mmseg', 'timm', 'torchvision'))
    site.fake('mmcv', '2.2.0')
    status, mends, _ = site.doctor()
    assert status == 1
    (problem,) = [p for p in mends if p.startswith('mmdet does not fit: ')]
    assert 'MMCV==2.2.0 is used but incompatible' in problem
    assert mends[problem].startswith('python -m pip uninstall --yes mmcv && ')
    assert mends[problem].endswith(' mmcv mmcv==2.1.0')


def test_a_package_raises_while_it_is_imported(site):
    site.link('numpy', 'wrapt')
    site.fake('torch', '2.12.1+cu130', "raise OSError('libcudart.so.13: no such\\nfile')")
    status, mends, said = site.doctor()
    assert status == 1
    assert mends == {
        'importing torch: OSError: libcudart.so.13: no such file': (
            'python -m pip install --force-reinstall --no-deps torch==2.12.1'
        ),
        'mmengine is not found, and mmivit needs it': 'python -m pip install mmengine',
    }
    assert 'not examined: needs torch' in said


def test_a_package_crashes_python_while_it_is_imported(site):
    site.link('wrapt')
    site.fake('numpy', '2.4.6', 'import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)')
    site.fake('torch', '2.1.2')
    site.fake('mmengine', '0.10.12', distribution='onedl_mmengine')
    status, mends, _ = site.doctor()
    assert status == 1
    assert mends == {
        'torch 2.1.2 was compiled for numpy 1, found 2.4.6': 'python -m pip install "numpy<2"',
        'importing numpy: crashes Python (SIGSEGV)': 'python -m pip install "numpy<2"',
    }


def test_one_cause_has_one_command(site):
    site.link('numpy', 'wrapt')
    site.fake('torch', '2.12.1', 'from_numpy = lambda array: array')
    site.fake('torchvision', '0.26.0', "raise RuntimeError('no torchvision::nms')")
    with open(site.folder / 'torchvision-0.26.0.dist-info/METADATA', 'a') as file:
        file.write('Requires-Dist: torch==2.11.0\n')
    site.fake('mmengine', '0.10.7', 'import torchvision')
    _, mends, _ = site.doctor()
    command = 'python -m pip uninstall --yes torchvision && '
    command += 'python -m pip install torchvision torch==2.12.1'
    assert mends['torchvision 0.26.0 is for torch 2.11.0, not 2.12.1'] == command
    for name in ('torchvision', 'mmengine'):
        assert mends[f'importing {name}: RuntimeError: no torchvision::nms'] == command


@pytest.mark.matrix('doctor')
def test_a_sound_environment(tmp_path):
    # Where the tests run. Its packages are there already: the folder of links stays empty.
    status, mends, said = Site(tmp_path, sys.executable).doctor()
    assert not mends
    assert status == 0, said
    assert 'mmcv.ops          nms and roi_align answer rightly on cpu' in said
    for package in ('mmengine', 'mmdet', 'mmseg'):
        assert f"{'IViT in ' + package:18}type='mmivit.IViT' resolves" in said


STACK = {'torch': {'torch': '2.12.1'}, 'mmengine': {'mmengine': '0.10.7'}}
LITE = {'mmcv': {'mmcv': '2.1.0'}}


@pytest.mark.parametrize(
    ('name', 'word', 'why', 'mend'),
    [
        ('mmcv.ops', 'ImportError: x.so: undefined symbol: _ZN2at', 'another torch', 'mmcv==2.1.0'),
        ('mmcv.ops', 'crashes Python (SIGSEGV)', 'another torch than 2.12.1', 'mmcv==2.1.0'),
        ('mmcv.ops', 'implementation for device cuda:0 not found', 'CPU alone', 'mmcv==2.1.0'),
        ('mmcv', 'ImportError: libGL.so.1: no such file', 'libGL', 'opencv-python-headless'),
        ('torch', 'RuntimeError: Numpy is not available', 'numpy 1', '"numpy<2"'),
        ('mmseg', "No module named 'ftfy'", 'mmseg needs ftfy', 'pip install ftfy'),
    ],
)
def test_what_an_error_means(name, word, why, mend):
    what, command = explain(name, word, {**STACK, **LITE})
    assert why in what
    assert word in what
    assert command.endswith(mend)


def test_the_original_and_its_fork_overwrite_each_other():
    both = {'mmcv': '2.1.0', 'onedl-mmcv': '2.3.6'}
    forks = {'mmengine': {'onedl-mmengine': '0.10.12'}, 'mmcv': both}
    (module, problem, mend), *_ = misfits(forks)
    assert module == 'mmcv'
    assert problem == 'mmcv 2.1.0 and onedl-mmcv 2.3.6 overwrite each other'
    assert 'pip uninstall --yes mmcv onedl-mmcv && ' in mend
    assert mend.endswith(' --no-binary onedl-mmcv onedl-mmcv')  # as the rest of the stack
    assert install('mmcv', {**STACK, 'mmcv': both}).endswith(' --no-binary mmcv mmcv==2.1.0')


def test_a_torch_that_mmcv_does_not_compile_with():
    newest = {'torch': {'torch': '2.14.0'}}
    assert 'pip install "torch<2.14" torchvision && ' in install('mmcv', newest)
    assert 'torch<2.14' in install('mmcv', {**newest, 'mmengine': {'onedl-mmengine': '0.10.12'}})
    assert 'torch<2.14' not in install('mmcv', {'torch': {'torch': '2.12.1+cpu'}})
