"""The backbone under plain names in mmdet and mmseg, and the models in timm.

Once mmivit is imported, ``IViT``, ``mmdet.IViT`` and ``mmseg.IViT`` resolve where these packages
are used, and timm knows ``ivit_tiny`` and so on, in whichever order the packages are imported. None
of them is imported here.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

import wrapt

from mmivit.registry import MODELS

SHARED_WITH = ('mmdet', 'mmseg')


def share_when_imported() -> None:
    """Share at once with the packages that are imported already, with others when they are."""
    for package in SHARED_WITH:
        wrapt.register_post_import_hook(share, f'{package}.registry')
    wrapt.register_post_import_hook(_register_with_timm, 'timm')


def _register_with_timm(_: ModuleType) -> None:
    for name in ('classifier', 'vit'):
        import_module(f'mmivit.models.{name}')


def share(package_registry: ModuleType) -> None:
    """Register the backbone in another package's own registry, under its plain name.

    Args:
        package_registry: ``mmdet.registry`` or ``mmseg.registry``.
    """
    models = package_registry.MODELS
    # A name already taken is left to its owner; ``mmivit.IViT`` is never ambiguous.
    if 'IViT' not in models.module_dict:
        models.register_module(name='IViT', module=MODELS.get('IViT'))
