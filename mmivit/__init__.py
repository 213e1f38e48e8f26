"""mmivit: iViT, a backbone with linear interactive attention, for mmdet and mmseg."""

from mmivit import registry
from mmivit.checkpoint import allow_mmengine_checkpoints
from mmivit.version import __version__

allow_mmengine_checkpoints()

__all__ = ['__version__', 'registry']
