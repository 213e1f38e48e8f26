"""What MMEngine's Runner is given: learning-rate decay, hooks, samplers; resuming a run."""

from mmivit.engine.hooks import FiniteLossHook, SafeCheckpointHook
from mmivit.engine.label_maps import LabelMapHook
from mmivit.engine.layer_decay import LayerDecayOptimWrapperConstructor, layer_scales
from mmivit.engine.schedule import ScheduleHook, WarmUpLR
from mmivit.engine.seeding import SeededBatchSampler, SeedHook

__all__ = [
    'FiniteLossHook',
    'LabelMapHook',
    'LayerDecayOptimWrapperConstructor',
    'SafeCheckpointHook',
    'ScheduleHook',
    'SeedHook',
    'SeededBatchSampler',
    'WarmUpLR',
    'layer_scales',
]
