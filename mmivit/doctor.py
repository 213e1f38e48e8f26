"""What is installed, whether it fits together, and the command that mends what doesn't.

    python -m mmivit.doctor

Only the standard library is imported here. What is examined is imported in processes of their own,
because a broken one may raise anything, hang, or crash Python. Exits with 1 if something that
mmivit or an installed package needs is missing or broken.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from importlib import import_module, metadata, util
from pathlib import Path
from typing import NamedTuple

# The distributions that hold a module: the original first, its maintained fork last.
DISTRIBUTIONS = {
    'numpy': ('numpy',),
    'wrapt': ('wrapt',),
    'torch': ('torch',),
    'torchvision': ('torchvision',),
    'timm': ('timm',),
    'mmengine': ('mmengine', 'onedl-mmengine'),
    'mmcv': ('mmcv', 'mmcv-lite', 'onedl-mmcv'),
    'mmdet': ('mmdet', 'onedl-mmdetection'),
    'mmseg': ('mmsegmentation', 'onedl-mmsegmentation'),
}
# What pip is asked for where that is not the distribution's name alone.
REQUIREMENTS = {
    'mmcv': 'mmcv==2.1.0',  # the newest that mmdet 3.3.0 and mmsegmentation 1.2.2 accept
    'mmsegmentation': 'mmsegmentation ftfy regex',
    'onedl-mmsegmentation': 'onedl-mmsegmentation ftfy regex',
    'onedl-mmdetection': 'onedl-mmdetection imaug',
    'cv2': 'opencv-python-headless',
    'PIL': 'pillow',
    'yaml': 'pyyaml',
}
Installed = dict[str, dict[str, str]]  # module -> distribution -> version


class Check(NamedTuple):
    """One thing examined: the checks it builds on, and a function that raises or says a word."""

    needs: tuple[str, ...]
    run: Callable[[], str]


def _imports(module: str) -> Callable[[], str]:
    def run() -> str:
        import_module(module)
        return 'imports'

    return run


def _torch_with_numpy() -> str:
    import numpy
    import torch

    torch.from_numpy(numpy.zeros(1))
    return 'imports, takes arrays from numpy'


def _cuda() -> str:
    import torch

    driver = 'no driver found'
    if shutil.which('nvidia-smi'):
        query = ['nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader']
        answer = subprocess.run(query, capture_output=True, text=True).stdout.split()
        driver = f'driver {answer[0]}' if answer else driver
    built = f"torch's build: CUDA {torch.version.cuda}" if torch.version.cuda else 'torch for CPU'
    devices = [f'cuda:{i}' for i in range(torch.cuda.device_count())]
    for device in devices:
        torch.ones(2, device=device).sum().item()
    names = [torch.cuda.get_device_name(device) for device in devices]
    return f'{built}; {driver}; {", ".join(names) or "no device"}'


def _mmcv_operators() -> str:
    import torch
    from mmcv.ops import nms, roi_align

    devices = ['cpu', 'cuda'] if torch.cuda.is_available() else ['cpu']
    for device in devices:
        boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 3]], device=device)  # IoU 0.75
        kept = nms(boxes, torch.tensor([0.9, 0.8], device=device), 0.5)[1]
        rois = torch.cat([torch.zeros_like(boxes[:, :1]), boxes], dim=1)
        pooled = roi_align(torch.ones(1, 1, 8, 8, device=device), rois, (2, 2))
        if kept.tolist() != [0] or (pooled - 1).abs().max() > 1e-5:
            raise ValueError(f'nms or roi_align answer wrongly on {device}')
    return f'nms and roi_align answer rightly on {" and ".join(devices)}'


def _resolves_in(package: str) -> Callable[[], str]:
    def run() -> str:
        if import_module(f'{package}.registry').MODELS.get('mmivit.IViT') is None:
            import_module('mmivit.models')  # says why, where the registry is silent
            raise LookupError(f"mmivit.IViT is not in {package}'s registry")
        return "type='mmivit.IViT' resolves"

    return run


# In the order examined; all that passes is examined in one process.
CHECKS = {
    'numpy': Check((), _imports('numpy')),
    'wrapt': Check((), _imports('wrapt')),
    'torch': Check(('numpy',), _torch_with_numpy),
    'CUDA': Check(('torch',), _cuda),
    'torchvision': Check(('torch',), _imports('torchvision')),
    'timm': Check(('torchvision',), _imports('timm')),
    'mmengine': Check(('torch',), _imports('mmengine')),
    'IViT in mmengine': Check(('wrapt', 'mmengine'), _resolves_in('mmengine')),
    'mmcv': Check(('mmengine',), _imports('mmcv')),
    'mmdet': Check(('mmcv',), _imports('mmdet')),
    'IViT in mmdet': Check(('mmdet', 'IViT in mmengine'), _resolves_in('mmdet')),
    'mmseg': Check(('mmcv',), _imports('mmseg')),
    'IViT in mmseg': Check(('mmseg', 'IViT in mmengine'), _resolves_in('mmseg')),
    'mmcv.ops': Check(('mmcv',), _mmcv_operators),
}
NEEDED = {'numpy', 'wrapt', 'torch', 'mmengine'}
OPTIONAL = {'mmdet': 'detection', 'mmseg': 'segmentation', 'timm': 'classification, weights'}


def probe(names: Iterable[str]) -> None:
    """Run checks in this process up to the first that fails, a line of JSON for each."""
    for name in names:
        try:
            passed, word = True, CHECKS[name].run()
        except BaseException as error:  # SystemExit as well
            passed, word = False, ' '.join(f'{type(error).__name__}: {error}'.split())
        print(f'\n@{json.dumps([name, passed, word])}', flush=True)
        if not passed:
            break
    os._exit(0)  # nothing that was imported gets to crash at the end


def examine(names: Iterable[str], timeout: float) -> dict[str, tuple[bool, str]]:
    """Run checks in processes of their own, a new one after each failure.

    A check whose needs are not met is left out of the answer. ``timeout``: seconds a process has.
    """
    results: dict[str, tuple[bool, str]] = {}
    # Not by `-m`: this file alone is loaded, and mmivit is imported when a check does.
    code = 'import runpy, sys; runpy.run_path(sys.argv[1])["probe"](sys.argv[2:])'
    while True:
        fit = {name for name, (passed, _) in results.items() if passed}
        todo: list[str] = []
        for name in names:
            if name not in results and all(n in fit or n in todo for n in CHECKS[name].needs):
                todo.append(name)
        if not todo:
            return results
        with tempfile.TemporaryFile('w+', errors='replace') as out:
            command = [sys.executable, '-c', code, __file__, *todo]
            try:
                status = subprocess.run(
                    command, stdout=out, stderr=subprocess.DEVNULL, timeout=timeout
                ).returncode
                end = f'ends Python with status {status}'
                if status < 0:
                    end = f'crashes Python ({signal.Signals(-status).name})'
            except subprocess.TimeoutExpired:
                end = f'is not done after {timeout:g} seconds (--timeout SECONDS allows more)'
            out.seek(0)
            said = [json.loads(line[1:]) for line in out if line.startswith('@[')]
        results.update({name: (passed, word) for name, passed, word in said})
        if len(said) < len(todo) and all(passed for _, passed, _ in said):
            results[todo[len(said)]] = (False, end)


def find_installed() -> Installed:
    """The distributions of each module that is recorded or found, without importing any."""
    found: Installed = {}
    for module, distributions in DISTRIBUTIONS.items():
        try:
            spec = util.find_spec(module)
        except (ImportError, ValueError):
            spec = None
        versions = {d: v for d in distributions if (v := _version(d))}
        if versions or (spec is not None and spec.origin):  # a mere folder has no origin
            found[module] = versions
    return found


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r'\d+', version)[:2])


def pip(*words: str) -> str:
    """A pip command for the Python that runs."""
    named = shutil.which('python') == sys.executable
    return ' '.join(['python' if named else shlex.quote(sys.executable), '-m pip', *words])


def install(module: str, installed: Installed) -> str:
    """The command that puts the right distribution in the place of whichever is there."""
    present = installed.get(module, {})
    torch = installed.get('torch', {}).get('torch', '').split('+')[0]
    # Stay with the original or the fork, whichever the other OpenMMLab packages are.
    stack = [d for m, ds in installed.items() if m.startswith('mm') and m != module for d in ds]
    forks = sum(d.startswith('onedl-') for d in stack)
    name = DISTRIBUTIONS.get(module, (module,))[-1 if 2 * forks > len(stack) else 0]
    wanted = REQUIREMENTS.get(name, name)
    commands = [pip('uninstall --yes', *present)] if present else []
    if module == 'mmcv':
        if torch and _release(torch) >= (2, 14):
            # From there on torch wants C++20, which neither mmcv 2.1.0 nor the fork's 2.3.6 asks
            # of the compiler.
            commands.append(pip('install "torch<2.14" torchvision'))
        commands.append(pip('install "setuptools<81" wheel ninja psutil'))
        build = pip('install --no-cache-dir --no-build-isolation --no-binary', name, wanted)
        commands.append(f'MMCV_WITH_OPS=1 {build}')
    else:
        # Else pip may replace torch by a newer one.
        pin = [f'torch=={torch}'] if torch and module in ('torchvision', 'timm') else []
        commands.append(pip('install', wanted, *pin))
    return ' && '.join(commands)


def install_mmivit() -> str:
    """The command that installs this very mmivit."""
    root = Path(__file__).resolve().parent.parent
    folder = shlex.quote(str(root)) if (root / 'setup.py').exists() else 'FOLDER_OF_MMIVIT'
    return pip('install --no-deps --editable', folder)


def _module(check: str) -> str:
    """The module a check is of, by the check's name."""
    return check.split()[-1].split('.')[0]


def _shadow(module: str, installed: Installed) -> str | None:
    """Where a module is found, if that is not where its distribution was installed."""
    try:
        spec = util.find_spec(module)
        found = spec.origin if spec else None
        distribution = metadata.distribution(next(iter(installed[module])))
        editable = '"editable": true' in (distribution.read_text('direct_url.json') or '')
    except (AttributeError, ImportError, KeyError, StopIteration, ValueError):
        return None
    place = Path(os.path.abspath(str(distribution.locate_file(''))))
    inside = found and Path(os.path.abspath(found)).is_relative_to(place)
    return None if editable or inside else found


def explain(name: str, word: str, installed: Installed) -> tuple[str, str]:
    """What the error ``word`` of the check ``name`` means, and the command that mends it."""
    module = _module(name)
    torch = installed.get('torch', {}).get('torch', 'the one installed')
    absent = re.search(r"No module named '(\w+)", word)
    unfit = re.search(r'(MMCV|MMEngine)==\S+ is used but incompatible', word)
    reinstall = 'install --force-reinstall --no-deps'
    shadow = _shadow(module, installed)
    if shadow:
        why = f'{name} comes from {shadow}, not from what is installed'
        command = f'rename it, or take {Path(shadow).parent} off PYTHONPATH and leave that folder'
    elif 'libGL' in word:
        why = f"{name}: OpenCV's build for desktops needs libGL"
        command = f'{pip("uninstall --yes opencv-python")} && '
        command += pip(reinstall, 'opencv-python-headless')
    elif re.search(r'Numpy is not available|_ARRAY_API|numpy\.core\.multiarray', word):
        why, command = f'{name} was compiled for numpy 1', pip('install "numpy<2"')
    elif unfit:
        why, command = f'{name} does not fit', install(unfit[1].lower(), installed)
    elif name == 'mmcv.ops':
        why, command = "mmcv's operators do not work", install('mmcv', installed)
        if re.search(r"No module named 'mmcv\.(_ext|ops)", word):
            why = 'mmcv was installed without its compiled operators'
        elif 'device cuda' in word:
            why = "mmcv's operators were compiled for the CPU alone (CUDA's need nvcc)"
        elif re.search(r'undefined symbol|cannot open shared object|crashes', word):
            why = f"mmcv's operators were compiled for another torch than {torch}"
    elif absent and absent[1] not in (module, 'mmivit'):
        why, command = f'{name} needs {absent[1]}', install(absent[1], installed)
    elif name == 'CUDA':
        why = f'torch {torch} does not run on this card'
        command = pip('install --upgrade torch torchvision')
    elif name.startswith('IViT'):
        why, command = name, install_mmivit()
    elif module.startswith('mm') or module in ('torchvision', 'timm'):
        why, command = f'importing {name}', install(module, installed)
    else:
        pins = [f'{d}=={v.split("+")[0]}' for d, v in installed[module].items()]
        why, command = f'importing {name}', pip(reinstall, *pins or [name])
    return f'{why}: {word}', command


def misfits(installed: Installed) -> list[tuple[str, str, str]]:
    """What versions alone tell: each module, what is wrong and the command that mends it."""
    found = []
    for module, distributions in installed.items():
        if len(distributions) > 1:
            both = ' and '.join(f'{d} {v}' for d, v in distributions.items())
            what = f'{both} overwrite each other'
            found.append((module, what, install(module, installed)))
    torch = installed.get('torch', {}).get('torch', '')
    numpy = installed.get('numpy', {}).get('numpy', '')
    if _release(torch) == (2, 1) and _release(numpy) >= (2,):
        what = f'torch {torch} was compiled for numpy 1, found {numpy}'
        found.append(('numpy', what, pip('install "numpy<2"')))
    if torch and installed.get('torchvision'):
        for requirement in metadata.requires('torchvision') or ():
            pinned = re.match(r'torch\s*\(?==\s*([\d.]+)', requirement)
            if pinned and pinned[1] != torch.split('+')[0]:
                what = (
                    f'torchvision {_version("torchvision")} is for torch {pinned[1]}, not {torch}'
                )
                found.append(('torchvision', what, install('torchvision', installed)))
    root = str(Path(__file__).resolve().parent.parent)
    if not _version('mmivit') and root not in sys.path[1:]:  # the first is the folder we are in
        what = 'mmivit is found from this folder alone, not by tools or from elsewhere'
        found.append(('mmivit', what, install_mmivit()))
    return found


def main(argv: list[str] | None = None) -> int:
    """Print the report; return the exit status."""
    parser = argparse.ArgumentParser(prog='python -m mmivit.doctor', description=__doc__)
    parser.add_argument('--timeout', type=float, default=300, help='seconds a process may take')
    args = parser.parse_args(argv)

    installed = find_installed()
    names = [n for n in CHECKS if n in installed or n not in DISTRIBUTIONS]
    results = examine(names, args.timeout)
    needed = {n: 'mmivit' for n in NEEDED}
    needed.update({n: module for module in installed for n in CHECKS[module].needs})

    setuptools = _version('setuptools') or 'not installed'
    print(f'{"Python":18}{platform.python_version()}, setuptools {setuptools}')
    problems: list[tuple[str, str]] = []
    mends: dict[str, str] = {}  # by module or error: one cause has one command
    for module, what, command in misfits(installed):
        problems.append((what, command))
        mends[module] = command
    for name, check in CHECKS.items():
        passed, word = results.get(name, (False, ''))
        versions = [v if d == name else f'{d} {v}' for d, v in installed.get(name, {}).items()]
        if name in DISTRIBUTIONS and name not in installed:
            word = f'not installed ({OPTIONAL[name]})' if name in OPTIONAL else 'not installed'
            if name in needed:
                what = f'{name} is not found, and {needed[name]} needs it'
                problems.append((what, install(name, installed)))
        elif not word:
            unmet = [n for n in check.needs if not results.get(n, (False,))[0]]
            word = f'not examined: needs {", ".join(unmet)}'
        elif not passed:
            what, command = explain(name, word, installed)
            command = mends[word] = mends.get(_module(name)) or mends.get(word) or command
            problems.append((what, command))
            word = 'FAILS, see below'
        print(f'{name:18}{", ".join([*versions, word])}')

    merged: dict[str, list[str]] = {}
    for what, command in problems:
        merged.setdefault(command, []).append(what)
    for command, whats in merged.items():
        print('', *[f'Problem: {what}' for what in whats], f'  mend:  {command}', sep='\n')
    print('' if problems else '\nAll that is needed fits.')
    return 1 if problems else 0


if __name__ == '__main__':
    sys.exit(main())
