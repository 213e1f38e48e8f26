"""The scope ``mmivit``: ``type='mmivit.IViT'`` resolves from any OpenMMLab config.

MMEngine imports ``mmivit.registry`` for the prefix, and the locations for what they register.
"""

from __future__ import annotations

import sys
from typing import Any

from mmengine.registry import DATA_SAMPLERS as MMENGINE_DATA_SAMPLERS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.registry import VISUALIZERS as MMENGINE_VISUALIZERS
from mmengine.registry import WEIGHT_INITIALIZERS as MMENGINE_WEIGHT_INITIALIZERS
from mmengine.registry import Registry

MODELS = Registry('model', parent=MMENGINE_MODELS, scope='mmivit', locations=['mmivit.models.ivit'])
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    'optimizer wrapper constructor',
    parent=MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS,
    scope='mmivit',
    locations=['mmivit.engine'],
)
HOOKS = Registry(
    'hook',
    parent=MMENGINE_HOOKS,
    scope='mmivit',
    locations=['mmivit.engine'],
)
DATA_SAMPLERS = Registry(
    'data sampler',
    parent=MMENGINE_DATA_SAMPLERS,
    scope='mmivit',
    locations=['mmivit.engine'],
)
VISUALIZERS = Registry(
    'visualizer',
    parent=MMENGINE_VISUALIZERS,
    scope='mmivit',
    locations=['mmivit.engine.visualizer'],
)
WEIGHT_INITIALIZERS = Registry(
    'weight initializer',
    parent=MMENGINE_WEIGHT_INITIALIZERS,
    scope='mmivit',
    locations=['mmivit.weights.pretrained'],
)


def class_of(registry: Registry, node: dict, scope: str | None) -> type[Any]:
    """The class that a node of a config stands for, however its ``type`` says so.

    That is a class itself, its name in this scope, in another (``mmdet.FPN``), or the path from
    which it is imported, as MMEngine writes classes into the configs it dumps.

    Args:
        registry: MMEngine's own of that kind, whose children are those of the scopes.
        node: as a config has it.
        scope: of the config, in which names without one are looked up.

    Returns:
        The class; ``object`` where there is none of that name, or it is a function's.
    """
    kind = node.get('type')
    if isinstance(kind, str):
        with registry.switch_scope_and_registry(scope) as scoped:
            try:
                kind = scoped.get(kind)
            except RuntimeError:  # what is imported for it fails
                return object
    return kind if isinstance(kind, type) else object


def derives_from(kind: type, module: str, name: str) -> bool:
    """Whether a class is one of a package that need not be installed, or derived from it.

    Args:
        kind: the class.
        module: of the package; it is imported where there is a class derived from one of its own.
        name: of the package's class.
    """
    base = getattr(sys.modules.get(module), name, None)
    return isinstance(base, type) and issubclass(kind, base)
