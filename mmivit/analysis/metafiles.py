"""Model metafiles against the configs they list."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from mmengine import load
from mmengine.config import Config

NOT_RUN = 'not run'
# Folders of configs/ whose files are parts and templates, not models.
UNLISTED = ('_base_', 'examples')
# A row's key, and the config's.
SCHEDULE = {'Epochs': 'max_epochs', 'Iterations': 'max_iters'}


def check(root: Path) -> list[str]:
    """Compare the metafiles that ``model-index.yml`` imports with the configs.

    Args:
        root: folder with ``model-index.yml`` and ``configs/``.

    Returns:
        One message per problem, sorted, each opening with the path of the file to mend relative
        to ``root``: a config without a row, a row without a config, a name or a config in two
        rows, a row whose backbone or schedule is not its config's, a metric that is neither a
        number nor ``not run``, a number with neither weights nor a training log.

    Raises:
        FileNotFoundError: no ``model-index.yml``, or a metafile it imports is missing.
    """
    root = Path(root)
    rows = [
        (path, row)
        for path in load(root / 'model-index.yml')['Import']
        for row in load(root / path).get('Models') or ()
    ]
    problems = []
    for key in ('Name', 'Config'):
        count = Counter(row[key] for _, row in rows if row.get(key))
        problems += [
            f'{path}: {key} {row[key]!r} in {count[row[key]]} rows'
            for path, row in rows
            if count[row.get(key)] > 1
        ]
    listed = {row.get('Config') for _, row in rows}
    problems += [f'{config}: no metafile lists it' for config in _configs(root) - listed]
    for path, row in rows:
        problems += [f'{path}: {row.get("Name")}: {text}' for text in _row_problems(root, row)]
    return sorted(set(problems))


def _configs(root: Path) -> set[str]:
    """Paths of the configs that need a row, relative to ``root``."""
    paths = {path.relative_to(root) for path in (root / 'configs').rglob('*.py')}
    return {path.as_posix() for path in paths if path.parts[1] not in UNLISTED}


def _row_problems(root: Path, row: dict) -> list[str]:
    config, problems = row.get('Config'), _metric_problems(row)
    if not config or not (root / config).is_file():
        return [*problems, f'no such config: {config}']
    cfg, stated = Config.fromfile(root / config), row.get('Metadata', {})
    backbone = cfg.model.get('backbone') or cfg.model.student
    expected = {'Backbone': f'iViT-{backbone.arch.capitalize()}'}
    expected.update({key: cfg.train_cfg.get(name) for key, name in SCHEDULE.items()})
    for key, value in expected.items():
        if stated.get(key) != value:
            problems.append(f'{key} is {stated.get(key)}, {config} says {value}')
    return problems


def _metric_problems(row: dict) -> list[str]:
    problems = []
    for result in row.get('Results', ()):
        for name, value in result['Metrics'].items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                if not (row.get('Weights') or row.get('Training Log')):
                    problems.append(f'{name} is {value} with neither Weights nor Training Log')
            elif value != NOT_RUN:
                problems.append(f'{name} is {value!r}, neither a number nor {NOT_RUN!r}')
    return problems
