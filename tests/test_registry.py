"""Registration, each case in a fresh process started in an empty folder elsewhere; types."""

import subprocess
import sys

import pytest
from mmengine.registry import MODELS

from mmivit.models import IViT
from mmivit.registry import class_of, derives_from
from tests.conftest import TIMEOUT

pytestmark = pytest.mark.matrix('registration')
NOTHING_IMPORTED = "import sys; assert not any(m.startswith('mmivit') for m in sys.modules)\n"


def run(code, folder):
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=folder, capture_output=True, text=True, timeout=TIMEOUT
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize('package', ['mmengine', 'mmdet', 'mmseg'])
def test_scoped_name_resolves_with_nothing_imported(package, tmp_path):
    run(
        f'from {package}.registry import MODELS\n'
        + NOTHING_IMPORTED
        + "assert type(MODELS.build(dict(type='mmivit.IViT', arch='nano'))).__name__ == 'IViT'\n",
        tmp_path,
    )


@pytest.mark.parametrize('first', ['mmivit', 'package'])
@pytest.mark.parametrize('package', ['mmdet', 'mmseg'])
def test_plain_and_package_names_resolve_once_imported(package, first, tmp_path):
    imports = ['import mmivit', f'from {package}.registry import MODELS']
    run(
        '\n'.join(imports if first == 'mmivit' else imports[::-1])
        + '\nfrom mmivit.models import IViT\n'
        + f"for name in ('IViT', '{package}.IViT'):\n"
        + '    assert MODELS.get(name) is IViT, name\n',
        tmp_path,
    )


@pytest.mark.parametrize(('used', 'other'), [('mmdet', 'mmseg'), ('mmseg', 'mmdet')])
def test_neither_package_is_imported_for_the_other(used, other, tmp_path):
    # Looked up in `module_dict`, because building imports all of mmseg, which itself tries mmdet.
    run(
        'import sys, mmivit\n'
        "assert not {'mmdet', 'mmseg'} & set(sys.modules)\n"
        f'from {used}.registry import MODELS\n'
        "assert 'IViT' in MODELS.module_dict\n"
        f"assert '{other}' not in sys.modules\n"
        'from mmengine.registry import VISUALIZERS\n'
        f"assert VISUALIZERS.get('mmivit.{used[2:].title()}Visualizer')\n"
        f"assert '{other}' not in sys.modules or '{used}' == 'mmseg'\n",
        tmp_path,
    )


def test_registering_twice_is_harmless_and_a_taken_name_is_left_alone(tmp_path):
    run(
        'import mmdet.registry, mmseg.registry\n'
        "@mmseg.registry.MODELS.register_module(name='IViT')\n"
        'class Other: pass\n'
        'import mmivit.sharing\n'
        'mmivit.sharing.share(mmdet.registry)\n'
        'mmivit.sharing.share(mmdet.registry)\n'
        "assert mmseg.registry.MODELS.get('IViT') is Other\n"
        "assert mmseg.registry.MODELS.get('mmivit.IViT').__name__ == 'IViT'\n",
        tmp_path,
    )


@pytest.mark.parametrize('scope', [None, 'mmdet', 'mmseg'])
@pytest.mark.parametrize('kind', [IViT, 'mmivit.IViT', 'mmivit.models.ivit.IViT'])
def test_a_type_is_a_class_however_it_is_written(kind, scope):
    assert class_of(MODELS, dict(type=kind), scope) is IViT
    if scope:
        import mmivit  # noqa: F401

        assert class_of(MODELS, dict(type='IViT'), scope) is IViT
        assert class_of(MODELS, dict(type=f'{scope}.IViT'), None) is IViT


@pytest.mark.parametrize('node', [{}, dict(type='Nothing'), dict(type='mmdet.No'), dict(type=len)])
def test_what_is_no_class(node):
    assert class_of(MODELS, node, 'mmdet') is object


def test_classes_derived_from_those_of_a_package():
    kind = class_of(MODELS, dict(type='mmdet.SoftTeacher'), None)
    assert derives_from(kind, 'mmdet.models', 'BaseDetector')
    assert not derives_from(kind, 'mmdet.models', 'FPN')
    assert not derives_from(kind, 'not_installed.models', 'BaseDetector')
