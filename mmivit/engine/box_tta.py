"""Test-time augmentation of mmdet's, for the boxes of detectors that find masks as well."""

from __future__ import annotations

from mmdet.models import DetTTAModel
from mmdet.structures import DetDataSample

from mmivit.registry import MODELS


@MODELS.register_module()
class BoxTTAModel(DetTTAModel):
    """mmdet's, which merges boxes and refuses masks: here they are left out."""

    def _merge_single_sample(self, data_samples: list[DetDataSample]) -> DetDataSample:
        for sample in data_samples:
            sample.pred_instances.pop('masks', None)
        return super()._merge_single_sample(data_samples)
