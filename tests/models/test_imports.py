"""What mmivit.models needs: torch and mmengine alone, whatever else is installed."""

import ast
import pkgutil
import subprocess
import sys

import pytest

from mmivit import models
from tests.conftest import TIMEOUT

# These are timm's models, and need it.
WITH_TIMM = ('mmivit.models.classifier', 'mmivit.models.vit')
MODULES = [
    module.name
    for module in pkgutil.iter_modules(models.__path__, 'mmivit.models.')
    if module.name not in WITH_TIMM
]
NOT_NEEDED = ('PIL', 'safetensors', 'mmcv', 'mmdet', 'mmseg', 'timm')


def test_the_models_import_without_what_they_do_not_need(tmp_path):
    code = (
        'import importlib, sys\n'
        f'sys.modules.update(dict.fromkeys({NOT_NEEDED}))\n'  # None: importing it fails
        f'for name in {["mmivit.models", *MODULES]}:\n'
        '    importlib.import_module(name)\n'
        'from mmivit.models import IViT\n'
        "IViT('nano')\n"
    )
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize('name', MODULES)
def test_no_module_of_the_models_reads_archives(name):
    # In a process zipfile says nothing: torch imports it.
    path = pkgutil.resolve_name(name).__file__
    with open(path) as file:
        tree = ast.parse(file.read())
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition('.')[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or '').partition('.')[0])
    assert imported  # the walk sees them
    assert not imported & {'zipfile', *NOT_NEEDED}
