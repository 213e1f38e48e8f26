"""Learning curves of several runs in one picture, from what MMEngine logs."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from mmivit.utils.figures import save_figure
from mmivit.utils.files import check_absent

SCORES = ('mIoU', 'mAP', 'top1')  # how the names of the scores that are drawn end
Curve = list[tuple[int, float]]


def read_curves(run: str | Path) -> dict[str, Curve]:
    """Loss and validation scores of a run, by name, as (iteration, value).

    MMEngine counts validations in epochs where training does; here each is then put at the
    iteration logged last before it. A run that was resumed has a log per start: later ones go on.

    Args:
        run: a work dir.

    Raises:
        FileNotFoundError: it holds no log.
        ValueError: a log holds something else, or no loss.
    """
    logs = sorted(Path(run).glob('*/vis_data/scalars.json'))
    if not logs:
        raise FileNotFoundError(f'{run} holds no log; looked for {run}/*/vis_data/scalars.json')
    curves: dict[str, dict[int, float]] = defaultdict(dict)
    for log in logs:
        iteration = 0
        for line in log.read_text().splitlines(keepends=True):
            if not line.endswith('\n'):
                break  # still being written, or killed meanwhile
            try:
                record = json.loads(line)
                step = record['step']
            except (ValueError, TypeError, LookupError) as error:
                raise ValueError(f'{log} is not one JSON record per line: {error!r}') from error
            if 'loss' in record:
                iteration = step
                curves['loss'][iteration] = record['loss']
            for name in record:
                if name.endswith(SCORES):
                    # A count of epochs is below the iterations that they took.
                    curves[name][max(iteration, step)] = record[name]
    if 'loss' not in curves:
        raise ValueError(f'{logs[0]} holds no training loss')
    return {name: sorted(curve.items()) for name, curve in curves.items()}


def plot_logs(runs: Sequence[str | Path], out: str | Path, force: bool = False) -> None:
    """Draw the loss and each validation score of several runs, a colour per run, as PNG.

    Args:
        runs: work dirs.
        out: the file to write.
        force: replace it.

    Raises:
        FileNotFoundError, ValueError: as in :func:`read_curves`.
        FileExistsError: the file exists and ``force`` is off.
    """
    from matplotlib.figure import Figure

    check_absent(out, force)
    curves = {str(run): read_curves(run) for run in runs}
    names = list(dict.fromkeys(name for run in curves.values() for name in run))
    figure = Figure((5.5 * len(names), 4.2), dpi=110, layout='constrained')
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for axes, name in zip(panels, names):
        for i, (run, found) in enumerate(curves.items()):
            # A run without this score keeps its colour in the other panels.
            style = dict(marker='o') if name != 'loss' else {}
            axes.plot(
                *zip(*found.get(name, [(0, float('nan'))])), color=f'C{i}', label=run, **style
            )
        axes.set(xlabel='iteration', ylabel='training loss' if name == 'loss' else name)
        axes.grid(alpha=0.3)
    panels[0].legend(fontsize=8)
    save_figure(figure, Path(out))
