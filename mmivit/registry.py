"""The scope ``mmivit``: ``type='mmivit.IViT'`` resolves from any OpenMMLab config.

MMEngine imports ``mmivit.registry`` for the prefix, and the locations for what they register.
"""

from __future__ import annotations

from importlib.util import find_spec

from mmengine.registry import DATA_SAMPLERS as MMENGINE_DATA_SAMPLERS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.registry import VISUALIZERS as MMENGINE_VISUALIZERS
from mmengine.registry import WEIGHT_INITIALIZERS as MMENGINE_WEIGHT_INITIALIZERS
from mmengine.registry import Registry

PACKAGES = [package for package in ('mmdet', 'mmseg') if find_spec(package)]  # that are installed

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
    locations=[f'mmivit.engine.{package[2:]}_visualizer' for package in PACKAGES],
)
WEIGHT_INITIALIZERS = Registry(
    'weight initializer',
    parent=MMENGINE_WEIGHT_INITIALIZERS,
    scope='mmivit',
    locations=['mmivit.weights.pretrained'],
)
