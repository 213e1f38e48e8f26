"""Configs rewritten in MMEngine's pure Python style: classes instead of names, and no scope."""

from pathlib import Path

import mmengine.registry
from mmengine.config import Config
from mmengine.registry import Registry

from mmivit.registry import class_of

REGISTRIES = [value for value in vars(mmengine.registry).values() if isinstance(value, Registry)]


def write_pure(config: Path, folder: Path) -> Path:
    """Write a config in two files, of which one reads the other; the path of that one."""
    cfg = Config.fromfile(config)
    imported: dict[type, str] = {}

    def source(node: object) -> str:
        if isinstance(node, dict):
            return 'dict(' + ', '.join(f'{key}={value(node, key)}' for key in node) + ')'
        if isinstance(node, (list, tuple)):
            items = ''.join(f'{source(item)}, ' for item in node)
            return f'[{items}]' if isinstance(node, list) else f'({items})'
        return repr(node)

    def value(node: dict, key: str) -> str:
        if key == 'type' and isinstance(node['type'], str):
            found = (class_of(registry, node, cfg.default_scope) for registry in REGISTRIES)
            kind = next((kind for kind in found if kind is not object), None)
            if kind and not kind.__module__.startswith('torch.nn.'):  # layers keep their names
                return imported.setdefault(kind, f'{kind.__name__}_{len(imported)}')
        return source(node[key])

    left_out = ('custom_imports', 'default_scope', '_base_')
    lines = [f'{key} = {value(cfg, key)}' for key in cfg if key not in left_out]
    lines = [
        *(f'from {kind.__module__} import {kind.__name__} as {n}' for kind, n in imported.items()),
        'default_scope = None',
        *lines,
    ]
    (folder / 'everything.py').write_text('\n'.join(lines))
    path = folder / config.name
    path.write_text(
        'from mmengine.config import read_base\n\n'
        'with read_base():\n    from .everything import *\n'
    )
    return path
