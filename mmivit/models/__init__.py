"""iViT and the four attentions. Needs torch and mmengine alone."""

from mmivit.models.attention import (
    IMHSA,
    MHSA,
    DecomposedMHSA,
    InteractiveMHSA,
    build_attention,
)
from mmivit.models.ivit import IViT

__all__ = ['IMHSA', 'MHSA', 'DecomposedMHSA', 'IViT', 'InteractiveMHSA', 'build_attention']
