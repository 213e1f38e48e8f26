"""Learning curves from MMEngine's logs: epochs, resumed and killed runs, bad input."""

import json

import cv2
import pytest

from mmivit.analysis.learning_curves import plot_logs, read_curves
from tests.conftest import run_tool


def write_log(run, start, records, end='\n'):
    folder = run / start / 'vis_data'
    folder.mkdir(parents=True)
    (folder / 'scalars.json').write_text('\n'.join(map(json.dumps, records)) + end)


@pytest.fixture
def runs(tmp_path):
    """A segmentor's run, counted in iterations; a detector's in epochs, killed and resumed."""
    segmentor, detector = tmp_path / 'segmentor', tmp_path / 'detector'
    records = [dict(loss=3.0, step=50, iter=50), dict(loss=2.0, step=100, iter=100)]
    write_log(segmentor, '1', [*records, dict(mIoU=40.0, aAcc=80.0, time=0.1, step=100)])
    records = [dict(loss=9.0 - epoch, step=25 * epoch, epoch=epoch) for epoch in (1, 2, 3)]
    scores = [
        {'coco/bbox_mAP': epoch / 10, 'coco/bbox_mAP_50': 1, 'step': epoch} for epoch in (1, 2)
    ]
    write_log(detector, '1', [records[0], scores[0], records[1]], end='\n{"loss": 1')
    write_log(detector, '2', [records[1], scores[1], records[2]])
    return segmentor, detector


def test_curves(runs):
    segmentor, detector = map(read_curves, runs)
    assert segmentor == dict(loss=[(50, 3.0), (100, 2.0)], mIoU=[(100, 40.0)])
    assert detector['loss'] == [(25, 8.0), (50, 7.0), (75, 6.0)]
    assert detector['coco/bbox_mAP'] == [(25, 0.1), (50, 0.2)]
    assert set(detector) == {'loss', 'coco/bbox_mAP'}


def test_scores_between_logged_losses_stay_where_they_were_counted(tmp_path):
    losses = [dict(loss=1.0, step=step, iter=step) for step in (50, 100)]
    scores = [dict(mIoU=float(step), step=step) for step in (20, 60, 80, 120)]
    write_log(tmp_path, '1', [scores[0], losses[0], *scores[1:3], losses[1]])
    write_log(tmp_path, '2', scores[3:])  # resumed
    assert read_curves(tmp_path)['mIoU'] == [(step, float(step)) for step in (20, 60, 80, 120)]


def test_the_command(runs, tmp_path):
    done = run_tool('analysis/plot_logs.py', *runs, '--out', 'sub/curves.png', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    picture = cv2.imread(str(tmp_path / 'sub/curves.png'))
    assert picture.shape[1] > 3 * picture.shape[0]  # three panels: the loss and a score of each
    with pytest.raises(FileExistsError, match='--force'):
        plot_logs(runs, tmp_path / 'sub/curves.png')
    plot_logs(runs[:1], tmp_path / 'sub/curves.png', force=True)
    assert cv2.imread(str(tmp_path / 'sub/curves.png')).shape[1] < picture.shape[1]


def test_bad_input_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='scalars'):
        read_curves(tmp_path)
    write_log(tmp_path / 'run', '1', [dict(mIoU=1, step=1)])
    with pytest.raises(ValueError, match='no training loss'):
        read_curves(tmp_path / 'run')
    for text in ('hello', '5', '{"loss": 1}'):
        (tmp_path / 'run/1/vis_data/scalars.json').write_text(f'{text}\n')
        with pytest.raises(ValueError, match='one JSON record per line'):
            read_curves(tmp_path / 'run')
