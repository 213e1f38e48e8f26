"""What the ablations found: tables and a picture of their runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from mmengine.config import Config

from mmivit.analysis.cost import Cost, count_cost
from mmivit.apis.models import build_model
from mmivit.experiments.ablation import PEERS, Row, Run
from mmivit.experiments.measures import diversity_table
from mmivit.experiments.runs import RunLog, spread
from mmivit.utils.figures import save_figure
from mmivit.utils.files import write_whole
from mmivit.utils.tables import markdown_table

PEER_SIZE = 224  # side of the image, pixels, at which peers' costs are told
WITH_COSTS = ('peers', 'photographs')
DIVERSITY_OF = ('attention', 'heads')  # the groups whose heads are compared
UNITS = {  # of what a group varies, where that is a number
    'landmarks': "side of the landmarks' grid",
    'heads': 'heads in stage 3',
    'tokens': 'tokens in stage 3',
}


def write_ablation_report(log: RunLog, rows: dict[str, list[Row]], folder: Path) -> str:
    """Write ``ablation.md`` and ``ablation.png``; the tables."""
    tables = ablation_tables(log, rows)
    write_whole(folder / 'ablation.md', tables.encode())
    plot_ablation(log, rows, folder / 'ablation.png')
    return tables


def peer_costs() -> dict[str, Cost]:
    """Cost of every peer's backbone for one image of PEER_SIZE x PEER_SIZE pixels."""
    costs = {}
    for name, settings in PEERS.items():
        model = build_model(Config(dict(default_scope='mmdet', model=settings)))
        image = torch.zeros(1, 3, PEER_SIZE, PEER_SIZE)
        costs[name] = count_cost(model, lambda model=model, image=image: model(image))
    return costs


def ablation_tables(log: RunLog, rows: dict[str, list[Row]]) -> str:
    """Markdown: a table per group, scores as mean and standard deviation over n seeds."""
    parts = []
    for group, group_rows in rows.items():
        unit, names = UNITS.get(group), _score_names(log, group_rows)
        header = [group, *([unit] if unit else []), *(f'{name} (%)' for name in names), 'n']
        costs = peer_costs() if group in WITH_COSTS else None
        if costs:
            header += ['parameters', f'MACs at {PEER_SIZE} x {PEER_SIZE}']
        lines = []
        for name, number, runs in group_rows:
            cells = [name, *([number] if unit else [])]
            cells += [spread(_scores(log, runs, score)) for score in names]
            cells.append(len({run.seed for run in runs}))
            if costs:
                cost = costs[name]
                cells += [f'{cost.parameters / 1e6:.2f} M', f'{cost.macs / 1e6:.0f} M']
            lines.append(cells)
        parts += [f'## {group}', markdown_table(header, lines)]
        if group in DIVERSITY_OF:
            parts.append(_diversity_table(log, group, group_rows))
    return '\n\n'.join(parts) + '\n'


def _diversity_table(log: RunLog, group: str, rows: list[Row]) -> str:
    names = (name if number is None else f'{name}, {number}' for name, number, _ in rows)
    return diversity_table(
        group, {name: list(_records(log, row[2])) for name, row in zip(names, rows)}
    )


def plot_ablation(log: RunLog, rows: dict[str, list[Row]], path: Path) -> None:
    """A column per group, a row per score: bars, or curves where a number is varied; PNG."""
    from matplotlib.figure import Figure

    shown = [group for group in rows if group not in WITH_COSTS] or list(rows)
    scores = _score_names(log, rows[shown[0]])
    size = (4 * len(shown), 3.2 * len(scores))
    figure = Figure(size, layout='constrained')
    panels = figure.subplots(len(scores), len(shown), squeeze=False, sharey='row')
    for column, group in enumerate(shown):
        for axes, score in zip(panels[:, column], scores):
            values = {
                (name, number): _scores(log, runs, score) for name, number, runs in rows[group]
            }
            for line in dict.fromkeys(name for name, _ in values):
                points = [(x, v) for (name, x), v in values.items() if name == line for v in v]
                means = {x: sum(v) / len(v) for (name, x), v in values.items() if name == line}
                if group in UNITS:
                    axes.plot(list(means), list(means.values()), marker='o', label=line)
                    axes.set_xscale('log', base=2)
                    axes.set_xticks(list(means), [str(x) for x in means])
                else:
                    axes.bar(line, means[None], color='C0', alpha=0.4)
                    axes.tick_params(axis='x', labelsize=8)
                axes.plot(
                    [line if x is None else x for x, _ in points],
                    [v for _, v in points],
                    '.',
                    color='black',
                    markersize=4,
                )
            axes.set(title=group, ylabel=f'{score} (%)', xlabel=UNITS.get(group, ''))
            axes.grid(alpha=0.3)
            if group in UNITS:
                axes.legend()
    figure.suptitle('Drawn images, hard mode: means over seeds; a dot is a run')
    save_figure(figure, path, dpi=110)


def _score_names(log: RunLog, rows: list[Row]) -> list[str]:
    """Names of the scores of a group's runs."""
    runs = rows[0][2]
    return list(dict.fromkeys(name for score in _records(log, runs) for name in score['score']))


def _scores(log: RunLog, runs: list[Run], name: str) -> list[float]:
    return [r['score'][name] for r in _records(log, runs) if name in r['score']]


def _records(log: RunLog, runs: list[Run]) -> Iterator[dict]:
    return (log.get(**asdict(run)) for run in runs)
