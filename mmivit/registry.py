"""The scope ``mmivit``: ``type='mmivit.IViT'`` resolves from any OpenMMLab config.

MMEngine imports ``mmivit.registry`` for the prefix, and the locations for what they register.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

from mmengine.registry import DATA_SAMPLERS as MMENGINE_DATA_SAMPLERS
from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import METRICS as MMENGINE_METRICS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.registry import PARAM_SCHEDULERS as MMENGINE_PARAM_SCHEDULERS
from mmengine.registry import VISUALIZERS as MMENGINE_VISUALIZERS
from mmengine.registry import WEIGHT_INITIALIZERS as MMENGINE_WEIGHT_INITIALIZERS
from mmengine.registry import Registry


class LazyRegistry(Registry):
    """A registry that imports what needs mmdet, mmseg or timm when it is asked for.

    Locations are all imported at the first question: one package would be for the other's sake.

    Args:
        modules: by name of a class, the module that registers it.
    """

    def __init__(self, *args: Any, modules: dict[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._modules = modules

    def get(self, key: str) -> type | None:
        """What is registered under a name, with or without the scope in front."""
        module = self._modules.get(key.rpartition('.')[2])
        if module and key.rpartition('.')[0] in ('', self.scope):
            import_module(module)
        return super().get(key)


MODELS = LazyRegistry(
    'model',
    parent=MMENGINE_MODELS,
    scope='mmivit',
    locations=['mmivit.models.ivit'],
    modules=dict(
        BoxTTAModel='mmivit.engine.box_tta',
        DistilledIViT='mmivit.engine.distillation',
        IViTClassifier='mmivit.models.classifier',
    ),
)
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    'optimizer wrapper constructor',
    parent=MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS,
    scope='mmivit',
    locations=['mmivit.engine'],
)
PARAM_SCHEDULERS = Registry(
    'parameter scheduler',
    parent=MMENGINE_PARAM_SCHEDULERS,
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
DATASETS = Registry(
    'dataset',
    parent=MMENGINE_DATASETS,
    scope='mmivit',
    locations=['mmivit.datasets.image_folder'],
)
METRICS = Registry(
    'metric',
    parent=MMENGINE_METRICS,
    scope='mmivit',
    locations=['mmivit.engine.distillation'],
)
VISUALIZERS = LazyRegistry(
    'visualizer',
    parent=MMENGINE_VISUALIZERS,
    scope='mmivit',
    modules=dict(
        DetVisualizer='mmivit.engine.det_visualizer', SegVisualizer='mmivit.engine.seg_visualizer'
    ),
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
