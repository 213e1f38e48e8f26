"""Metafiles: the shipped ones agree with the configs, and every kind of problem is found."""

import shutil

import mmengine
import pytest

from mmivit.analysis.metafiles import check
from tests.conftest import CONFIGS, ROOT, run_tool

METAFILE = 'configs/metafile.yml'
ROW = 'configs/metafile.yml: mask_rcnn_ivit: '


@pytest.fixture
def copy(tmp_path):
    """A folder with the configs and their metafile, to be spoilt."""
    shutil.copytree(CONFIGS, tmp_path / 'configs')
    shutil.copy(ROOT / 'model-index.yml', tmp_path)
    return tmp_path


def spoil(root, change):
    """Apply ``change(models, row)``; ``row`` is that of mask_rcnn_ivit."""
    content = mmengine.load(root / METAFILE)
    models = content['Models']
    change(models, next(row for row in models if row['Name'] == 'mask_rcnn_ivit'))
    mmengine.dump(content, root / METAFILE)


def metric(value, **links):
    def change(models, row):
        row['Results'][0]['Metrics']['box AP'] = value
        row.update(links)

    return change


def metadata(**values):
    return lambda models, row: row['Metadata'].update(values)


def test_shipped_metafiles_are_clean(tmp_path):
    assert check(ROOT) == []
    done = run_tool('check_metafiles.py', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert 'agree' in done.stdout


@pytest.mark.parametrize(
    ('change', 'expected'),
    [
        (
            lambda models, row: models.remove(row),
            'configs/mask_rcnn_ivit.py: no metafile lists it',
        ),
        (
            lambda models, row: models.append(dict(row, Name='extra', Config='configs/no.py')),
            f'{METAFILE}: extra: no such config: configs/no.py',
        ),
        (
            lambda models, row: row.pop('Config') and models.append(dict(row, Name='extra')),
            f'{METAFILE}: extra: no such config: None',
        ),
        (
            lambda models, row: models[-1].update(Name='mask_rcnn_ivit'),
            f"{METAFILE}: Name 'mask_rcnn_ivit' in 2 rows",
        ),
        (
            lambda models, row: models.append(dict(row, Name='extra')),
            f"{METAFILE}: Config 'configs/mask_rcnn_ivit.py' in 2 rows",
        ),
        (
            metadata(Backbone='iViT-Base'),
            ROW + 'Backbone is iViT-Base, configs/mask_rcnn_ivit.py says iViT-Tiny',
        ),
        (metadata(Epochs=36), ROW + 'Epochs is 36, configs/mask_rcnn_ivit.py says 12'),
        (
            metadata(Iterations=160000),
            ROW + 'Iterations is 160000, configs/mask_rcnn_ivit.py says None',
        ),
        (metric('soon'), ROW + "box AP is 'soon', neither a number nor 'not run'"),
        (metric(True), ROW + "box AP is True, neither a number nor 'not run'"),
        (metric(40.5), ROW + 'box AP is 40.5 with neither Weights nor Training Log'),
    ],
)
def test_problem_is_found(copy, change, expected):
    spoil(copy, change)
    problems = check(copy)
    assert expected in problems
    assert problems == sorted(problems)


@pytest.mark.parametrize('link', ['Weights', 'Training Log'])
def test_a_number_with_evidence_is_accepted(copy, link):
    spoil(copy, metric(40.5, **{link: 'https://example.org/file'}))
    assert check(copy) == []


def test_the_command_reports_and_fails(copy):
    (copy / 'configs' / 'unlisted.py').write_text('')
    (copy / 'configs' / 'examples' / 'another.py').write_text('')
    done = run_tool('check_metafiles.py', copy, cwd=copy)
    assert done.returncode == 1
    assert done.stdout == 'configs/unlisted.py: no metafile lists it\n'
    done = run_tool('check_metafiles.py', copy / 'configs', cwd=copy)
    assert done.returncode == 1
    assert 'model-index.yml' in done.stderr
