"""What the comparison of starts found: tables and a picture of its runs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from mmivit.experiments.measures import diversity_table
from mmivit.experiments.runs import RunLog, spread
from mmivit.experiments.warm_start import STARTS, Run
from mmivit.utils.figures import save_figure
from mmivit.utils.files import write_whole
from mmivit.utils.tables import markdown_table

SCORES = {
    'classification': 'accuracy (%)',
    'segmentation': 'mIoU (%)',
    'detection': 'box AP50 (%)',
}


def write_warm_start_report(log: RunLog, runs: Sequence[Run], folder: Path, title: str) -> str:
    """Write ``warm_start.md`` and ``warm_start.png``; the tables."""
    tables = warm_start_tables(log, runs)
    write_whole(folder / 'warm_start.md', tables.encode())
    plot_warm_start(log, runs, folder / 'warm_start.png', title)
    return tables


def warm_start_tables(log: RunLog, runs: Sequence[Run]) -> str:
    """Markdown: scores right after conversion, by iteration, and how alike heads are.

    Means and standard deviations over the seeds.
    """
    parts = ['## Right after conversion', _at_once(_records(log, runs, 'pretrain')['MHSA itself'])]
    for task, score in SCORES.items():
        found = _records(log, runs, task)
        if not found:
            continue
        iterations = list(
            dict.fromkeys(i for (first, *_) in found.values() for i in first['score'])
        )
        rows = [
            [start, *(spread(r['score'][i] for r in records) for i in iterations)]
            for start, records in found.items()
        ]
        header = [f'{score}: start, landmarks', *iterations]
        parts += [f'## {task.capitalize()}', markdown_table(header, rows)]
    classified = _records(log, runs, 'classification')
    parts += ['## How alike heads are', diversity_table('start, landmarks', classified)]
    return '\n\n'.join(parts) + '\n'


def _at_once(records: list[dict]) -> str:
    """A row per attention and start, a column per side of the images."""
    scores: dict[str, dict[str, str]] = {}
    for key in records[0]['score']:
        name, side = key.split(' at ')
        scores.setdefault(name, {})[side] = spread(r['score'][key] for r in records)
    sides = list(next(iter(scores.values())))
    header = ['content and locality, landmarks', *(f'{side} x {side}' for side in sides)]
    return markdown_table(header, [[name, *row.values()] for name, row in scores.items()])


def plot_warm_start(log: RunLog, runs: Sequence[Run], path: Path, title: str) -> None:
    """Scores against iterations, a panel per task, a line per start with its range; PNG."""
    from matplotlib.figure import Figure

    tasks = [task for task in SCORES if _records(log, runs, task)]
    colours = dict(
        zip(dict.fromkeys(name.split(', ')[0] for name in STARTS), ('C7', 'C0', 'C3', 'C2'))
    )
    figure = Figure((4.5 * len(tasks) + 1.5, 4), layout='constrained')
    for axes, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks):
        for start, records in _records(log, runs, task).items():
            iterations = list(records[0]['score'])
            columns = [[r['score'][i] for r in records] for i in iterations]
            places = [int(i) for i in iterations]
            colour = next(c for name, c in colours.items() if start.startswith(name))
            style = '--' if STARTS[start].landmarks == 14 else '-'
            mean = [statistics.mean(column) for column in columns]
            axes.plot(places, mean, style, color=colour, marker='.', label=start)
            low, high = [min(c) for c in columns], [max(c) for c in columns]
            axes.fill_between(places, low, high, color=colour, alpha=0.12, linewidth=0)
        axes.set(title=task, xlabel='iteration', ylabel=f'held-out {SCORES[task]}')
        axes.grid(alpha=0.3)
    lines, names = figure.axes[0].get_legend_handles_labels()  # every start is classified
    figure.legend(lines, names, title='start, landmarks', loc='outside right upper')
    figure.suptitle(f'{title}: mean and range over seeds')
    save_figure(figure, path, dpi=110)


def _records(log: RunLog, runs: Sequence[Run], task: str) -> dict[str, list[dict]]:
    """Records of a task's runs, a list over the seeds by start."""
    found: dict[str, list[dict]] = {}
    for run in runs:
        if run.task == task:
            found.setdefault(run.start, []).append(log.get(**asdict(run)))
    return found
