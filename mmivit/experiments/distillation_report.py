"""What the experiment with distillation found: tables and a picture of its runs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from mmivit.experiments.distillation import WAYS, Run
from mmivit.experiments.runs import RunLog, spread
from mmivit.utils.figures import save_figure
from mmivit.utils.files import write_whole
from mmivit.utils.tables import markdown_table

TEACHER_AT = 'MHSA at '  # a side: the key of a teacher's score
POINTS = "accuracy, points above its teacher's"
DOWNSTREAM = {'segmentation': 'mIoU (%)', 'detection': 'box AP50 (%)'}


def write_distillation_report(log: RunLog, runs: Sequence[Run], folder: Path, title: str) -> str:
    """Write ``distillation.md`` and ``distillation.png``; the tables."""
    tables = distillation_tables(log, runs)
    write_whole(folder / 'distillation.md', tables.encode())
    plot_distillation(log, runs, folder / 'distillation.png', title)
    return tables


def distillation_tables(log: RunLog, runs: Sequence[Run]) -> str:
    """Markdown: the teacher's scores, students' scores and errors by iteration, downstream scores.

    Means and standard deviations over the seeds. Teachers differ by more than students do from
    theirs, so that each student is compared with its own.
    """
    (teachers,) = records(log, runs, 'teach').values()
    scores: dict[str, dict[str, str]] = {}
    for key in teachers[0]['score']:
        name, side = key.split(' at ')
        scores.setdefault(name, {})[side] = spread(r['score'][key] for r in teachers)
    sides = list(next(iter(scores.values())))
    at_sides = [f'{side} x {side}' for side in sides]
    rows = [[name, *row.values()] for name, row in scores.items()]
    parts = ['## Teacher (accuracy, %)', markdown_table(['', *at_sides], rows)]
    students = above_teacher(log, runs)
    for key, what, digits in (('score', POINTS, 1), ('error', 'error of stage 4', 3)):
        iterations = list(next(iter(students.values()))[0][key])
        rows = [
            [name, *(spread((r[key][i] for r in found), digits) for i in iterations)]
            for name, found in students.items()
        ]
        header = [f'{what}: what learns, how, rate', *iterations]
        parts += [f'## Students: {what}', markdown_table(header, rows)]
    rows = [
        [name, *(spread(r['sides'][side] for r in found) for side in sides)]
        for name, found in students.items()
    ]
    parts += [f'## Students at the end: {POINTS}', markdown_table(['', *at_sides], rows)]
    for task, score in DOWNSTREAM.items():
        found = records(log, runs, task)
        if not found:
            continue
        iterations = list(next(iter(found.values()))[0]['score'])
        rows = [
            [start, *(spread(r['score'][i] for r in its) for i in iterations)]
            for start, its in found.items()
        ]
        parts += [f'## {task.capitalize()}', markdown_table([f'{score}: start', *iterations], rows)]
    return '\n\n'.join(parts) + '\n'


def plot_distillation(log: RunLog, runs: Sequence[Run], path: Path, title: str) -> None:
    """Students' scores and errors against iterations, a line per way with its range; PNG."""
    from matplotlib.figure import Figure

    figure = Figure((11, 4), layout='constrained')
    students = above_teacher(log, runs)
    panels = (('score', POINTS), ('error', 'relative error after stage 4'))
    for axes, (key, label) in zip(figure.subplots(1, 2), panels):
        for name, found in students.items():
            columns = [[r[key][i] for r in found] for i in found[0][key]]
            places = [int(i) for i in found[0][key]]
            colour = f'C{list(WAYS).index(name)}'
            mean = [statistics.mean(column) for column in columns]
            axes.plot(places, mean, color=colour, marker='.', label=name)
            low, high = [min(c) for c in columns], [max(c) for c in columns]
            axes.fill_between(places, low, high, color=colour, alpha=0.12, linewidth=0)
        axes.set(xlabel='iteration', ylabel=label)
        axes.grid(alpha=0.3)
    figure.axes[0].axhline(0, color='k', linestyle='--', label='the teacher')
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc='outside right upper')
    figure.suptitle(f'{title}: mean and range over seeds')
    save_figure(figure, path, dpi=110)


def records(log: RunLog, runs: Sequence[Run], task: str) -> dict[str, list[dict]]:
    """Records of a task's runs, a list over the seeds by start."""
    found: dict[str, list[dict]] = {}
    for run in runs:
        if run.task == task:
            found.setdefault(run.start, []).append(log.get(**asdict(run)))
    return found


def above_teacher(log: RunLog, runs: Sequence[Run]) -> dict[str, list[dict]]:
    """Records of the students, with accuracies as points above the teacher of the same seed."""
    (teachers,) = records(log, runs, 'teach').values()
    own = {teacher['seed']: teacher['score'] for teacher in teachers}
    found = {}
    for way, students in records(log, runs, 'distil').items():
        found[way] = []
        for student in students:
            taught = own[student['seed']]
            sides = {
                side: score - taught[f'{TEACHER_AT}{side}']
                for side, score in student['sides'].items()
            }
            first = taught[f'{TEACHER_AT}{next(iter(sides))}']
            score = {i: value - first for i, value in student['score'].items()}
            found[way].append(student | dict(score=score, sides=sides))
    return found
