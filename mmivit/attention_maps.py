"""The attention maps, by the name that others import them by."""

from mmivit.analysis.attention_maps import (
    HeadDiversity,
    attention_inputs,
    effective_map,
    head_diversity,
    head_outputs,
    landmark_maps,
)

__all__ = [
    'HeadDiversity',
    'attention_inputs',
    'effective_map',
    'head_diversity',
    'head_outputs',
    'landmark_maps',
]
