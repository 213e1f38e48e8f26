"""What the ablations measure beside the usual scores: how alike heads are, what came from afar."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.registry import METRICS
from mmengine.runner import Runner
from torch import Tensor, nn

from mmivit.analysis.attention_maps import head_diversity
from mmivit.datasets.shapes import BEACONS, HARD_SHAPES
from mmivit.experiments.runs import spread
from mmivit.utils.tables import markdown_table

DIVERSITY = {  # what is recorded of heads, and how tables call it
    'map_cosine': "maps' cosine",
    'output_cka': "outputs' CKA",
    'effective_rank': "maps' effective rank",
}
DIVERSITY_IMAGES = 8


class DiversityRecorder(Hook):
    """How alike heads are before and after training: means over stage 3's layers and some images.

    Attributes:
        measured: by 'before' and 'after', the value of each of DIVERSITY.
    """

    def __init__(self) -> None:
        self.measured: dict[str, dict[str, float]] = {}

    def before_train(self, runner: Runner) -> None:
        self.measured['before'] = self._measure(runner)

    def after_train(self, runner: Runner) -> None:
        self.measured['after'] = self._measure(runner)

    def _measure(self, runner: Runner) -> dict[str, float]:
        images: list[Tensor] = []
        for batch in runner.val_dataloader:
            images += runner.model.data_preprocessor(batch, False)['inputs']
            if len(images) >= DIVERSITY_IMAGES:
                break
        return stage3_diversity(runner.model, images)


def stage3_diversity(model: nn.Module, images: Iterable[Tensor]) -> dict[str, float]:
    """Each of DIVERSITY, on the mean over stage 3's layers and images (C, H, W)."""
    layers = [r for r in head_diversity(model, images) if 'stages.2.' in r.layer]
    return {name: fmean(getattr(layer, name) for layer in layers) for name in DIVERSITY}


def diversity_table(title: str, rows: Mapping[str, Sequence[dict]]) -> str:
    """Markdown: how alike heads are before and after training, mean and spread over runs.

    Args:
        title: of the first column.
        rows: by name, records of runs whose 'diversity' has 'before' and 'after'.
    """
    when = ('before', 'after')
    header = [title, *(f'{name}, {moment}' for name in DIVERSITY.values() for moment in when)]
    lines = [
        [name]
        + [
            spread((r['diversity'][moment][key] for r in records), digits=2)
            for key in DIVERSITY
            for moment in when
        ]
        for name, records in rows.items()
    ]
    return markdown_table(header, lines)


@METRICS.register_module()
class VariantAccuracy(BaseMetric):
    """Of the pixels whose object's shape is right, the percentage where the beacon's mark is too.

    For label maps of the hard mode: background, then HARD_CLASSES.
    """

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Count the pixels of each sample's maps, (1, H, W)."""
        kinds = len(BEACONS)
        for sample in data_samples:
            predicted = sample['pred_sem_seg']['data'] - 1
            label = sample['gt_sem_seg']['data'].to(predicted) - 1
            is_object = (label >= 0) & (label < kinds * len(HARD_SHAPES))
            shape_right = is_object & (predicted // kinds == label // kinds)
            right = shape_right & (predicted == label)
            self.results.append((shape_right.sum().item(), right.sum().item()))

    def compute_metrics(self, results: list) -> dict[str, float]:
        shapes, variants = map(sum, zip(*results))
        return dict(variant=100 * variants / max(1, shapes))
