"""The scope ``mmivit``, and its sharing into mmdet's and mmseg's.

``type='mmivit.IViT'`` resolves from any OpenMMLab config: MMEngine imports ``mmivit.registry``
for the prefix and ``mmivit.models`` for the location. Where mmdet or mmseg is used, plain
``IViT``, ``mmdet.IViT`` and ``mmseg.IViT`` resolve as well once mmivit is imported, in whichever
order the packages are; timm gets the classifiers (``ivit_tiny`` and so on) in the same way. None of
them is imported here.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

import wrapt
from mmengine.registry import DATA_SAMPLERS as MMENGINE_DATA_SAMPLERS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.registry import WEIGHT_INITIALIZERS as MMENGINE_WEIGHT_INITIALIZERS
from mmengine.registry import Registry

SHARED_WITH = ('mmdet', 'mmseg')

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
    locations=['mmivit.randomness', 'mmivit.safeguards'],
)
DATA_SAMPLERS = Registry(
    'data sampler',
    parent=MMENGINE_DATA_SAMPLERS,
    scope='mmivit',
    locations=['mmivit.randomness'],
)
WEIGHT_INITIALIZERS = Registry(
    'weight initializer',
    parent=MMENGINE_WEIGHT_INITIALIZERS,
    scope='mmivit',
    locations=['mmivit.weights'],
)


def share(package_registry: ModuleType) -> None:
    """Register the backbone in another package's own registry, under its plain name.

    Args:
        package_registry: ``mmdet.registry`` or ``mmseg.registry``.
    """
    models = package_registry.MODELS
    # A name already taken is left to its owner; ``mmivit.IViT`` is never ambiguous.
    if 'IViT' not in models.module_dict:
        models.register_module(name='IViT', module=MODELS.get('IViT'))


for _package in SHARED_WITH:
    # Runs at once where the package is imported already, otherwise when it is.
    wrapt.register_post_import_hook(share, f'{_package}.registry')
wrapt.register_post_import_hook(
    lambda _: import_module('mmivit.models.classifier'),
    'timm',
)
