"""The ablations: which runs there are, and all of it once, as small as it goes."""

import multiprocessing
from dataclasses import asdict, replace

import pytest

from mmivit.datasets.shapes import ShapesSpec, write_dataset
from mmivit.datasets.solar_cells import write_cells
from mmivit.datasets.tree_crowns import write_trees
from mmivit.experiments.ablation import (
    GROUPS,
    MHSA_FIRST,
    PEERS,
    PRESETS,
    TRUNK,
    Preset,
    Run,
    ablate,
    plan,
    run_config,
    train,
)
from mmivit.experiments.ablation_report import write_ablation_report
from mmivit.experiments.measures import DIVERSITY
from mmivit.models import IViT
from tests.conftest import CONFIGS, run_tool
from tests.datasets.test_photographs import CELLS, TREES, cells, trees  # noqa: F401 (fixtures)

TINY = Preset(
    size=32,
    images=4,
    held_out=2,
    batch=2,
    iterations=2,
    peer_iterations=4,  # two halves, each with a warm-up
    seeds=1,
    other_seeds=1,
    cells=CELLS,
    trees=TREES,
    trees_size=64,
)


def runs_of(rows, *key):
    return next(runs for *found, runs in rows if tuple(found) == key)


def test_groups_share_their_runs():
    groups = plan(PRESETS['quick'])
    assert tuple(groups) == GROUPS
    imhsa = runs_of(groups['attention'], 'imhsa', None)
    assert [run.seed for run in imhsa] == [0, 1, 2]
    assert runs_of(groups['interaction'], 'post', None) == imhsa
    assert runs_of(groups['heads'], 'imhsa', 4) == imhsa[:1]
    assert runs_of(groups['tokens'], 'imhsa', 36) == imhsa[:1]
    assert runs_of(groups['landmarks'], 'imhsa', 7) == runs_of(groups['tokens'], 'imhsa', 144)
    decomposed = runs_of(groups['attention'], 'decomposed', None)
    assert runs_of(groups['interaction'], 'none', None) == decomposed
    every = {run for rows in groups.values() for *_, runs in rows for run in runs}
    # attentions and interactions; other head counts; larger images; peers in four tasks
    assert len(every) == 6 * 3 + 2 * 3 + (4 + 2) + 4 * 5
    assert len({run.name for run in every}) == len(every)


@pytest.mark.parametrize('preset', PRESETS)
def test_every_run_has_a_model(preset, tmp_path):
    for rows in plan(PRESETS[preset]).values():
        for *_, (run, *_) in rows:
            if run.task == 'cells':
                continue
            cfg = run_config(run, tmp_path, CONFIGS)
            assert cfg.model.backbone.type == PEERS[run.backbone]['type']
            if cfg.model.backbone.type == 'mmivit.IViT':
                settings = {k: v for k, v in cfg.model.backbone.items() if k != 'type'}
                IViT(**settings)
                assert (settings['arch'] == TRUNK) == (run.task == 'light')


def test_all_of_it_and_on_from_a_torn_line(tmp_path, capfd):
    only = ('attention',)
    log, rows = ablate(tmp_path, CONFIGS, TINY, only, jobs=1)
    assert tuple(rows) == only
    assert len(log.records) == 4
    path = tmp_path / 'runs.jsonl'
    whole = path.read_text()
    path.write_text(whole[:-9])
    last = log.records[-1]
    log, rows = ablate(tmp_path, CONFIGS, TINY, only, jobs=1)
    assert path.read_text().splitlines()[:-1] == whole.splitlines()[:-1]
    again = log.records[-1]
    assert {**again, 'seconds': 0} == {**last, 'seconds': 0}
    assert again.keys() == {*asdict(Run(1, 1, 1)), 'score', 'seconds', 'diversity'}
    measured = log.get(task='light', attention='imhsa')['diversity']
    assert measured['before'].keys() == measured['after'].keys() == DIVERSITY.keys()
    assert measured['before'] != measured['after']
    table = write_ablation_report(log, rows, tmp_path)
    assert (tmp_path / 'ablation.md').read_text() == table
    assert "| attention | maps' cosine, before | maps' cosine, after |" in table
    assert '| attention | mIoU (%) | variant accuracy (%) | n |' in table
    assert (tmp_path / 'ablation.png').read_bytes().startswith(b'\x89PNG')
    assert '4 of 4 runs' in capfd.readouterr().err


@pytest.mark.parametrize(
    ('name', 'task', 'scores'),
    [
        (MHSA_FIRST, 'mask_rcnn', {'segm mAP50', 'bbox mAP50'}),
        ('PVTv2', 'upernet', {'mIoU', 'variant accuracy'}),
        (MHSA_FIRST, 'cells', {'cells, accuracy'}),
        ('ResNet', 'cells', {'cells, accuracy'}),
        ('Swin', 'trees', {'trees, bbox mAP50'}),
    ],
)
def test_peers_are_trained_and_scored(name, task, scores, trees, cells, tmp_path):  # noqa: F811
    rows = plan(TINY)
    runs = [*runs_of(rows['peers'], name, None), *runs_of(rows['photographs'], name, None)]
    root = tmp_path / 'data'
    if task == 'cells':
        write_cells(cells, root, CELLS)
    elif task == 'trees':
        write_trees(trees, root, TREES)
    else:
        write_dataset(root, ShapesSpec(TINY.images, TINY.held_out, TINY.size, hard=True))
    run = next(run for run in runs if run.task == task)
    score = train(replace(run, batch=2), {task: root}, CONFIGS, tmp_path / 'out')['score']
    assert score.keys() == scores
    # COCO's metric says -1 where there was nothing to find.
    assert all(-100 <= value <= 100 for value in score.values())


def test_photographs_need_their_wheels(tmp_path):
    with pytest.raises(ValueError, match="'photographs' needs the folder of the unpacked wheels"):
        ablate(tmp_path, CONFIGS, TINY, ('photographs',))


def test_no_seeds_at_all_are_refused(tmp_path):
    with pytest.raises(ValueError, match='seeds=0, 0: expected at least 1'):
        ablate(tmp_path, CONFIGS, TINY, GROUPS, seeds=0)


def test_a_failed_run_is_named_and_ends_the_others(tmp_path):
    before = set(multiprocessing.active_children())
    with pytest.raises(RuntimeError, match=r"attention='mhsa'.*log\.txt"):
        ablate(tmp_path, tmp_path / 'no_configs', TINY, ('attention',), jobs=1)
    assert not set(multiprocessing.active_children()) - before


def test_command_refuses_in_one_line(tmp_path):
    (tmp_path / 'file').write_text('')
    for args, message in (
        (('--preset', 'quick', '--only', 'nonsense'), "invalid choice: 'nonsense'"),
        (('--preset', 'quick', '--out', 'file'), 'ablate: '),
    ):
        refused = run_tool('analysis/ablate.py', *args, cwd=tmp_path)
        assert refused.returncode != 0
        assert message in refused.stderr.splitlines()[-1]
        assert 'Traceback' not in refused.stderr
