"""The scope ``mmivit``: ``type='mmivit.IViT'`` resolves from any OpenMMLab config.

MMEngine imports ``mmivit.registry`` for the prefix, and the locations for what they register.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from mmengine.registry import DATA_SAMPLERS as MMENGINE_DATA_SAMPLERS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.registry import VISUALIZERS as MMENGINE_VISUALIZERS
from mmengine.registry import WEIGHT_INITIALIZERS as MMENGINE_WEIGHT_INITIALIZERS
from mmengine.registry import Registry


class LazyRegistry(Registry):
    """A registry that imports what derives from mmdet's and mmseg's classes when it is asked for.

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
    modules=dict(BoxTTAModel='mmivit.engine.box_tta'),
)
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
