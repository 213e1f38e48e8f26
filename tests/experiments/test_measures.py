"""What the ablations measure beside the usual scores."""

import torch

from mmivit.datasets.shapes import HARD_CLASSES, SEMANTIC_CLASSES
from mmivit.experiments.measures import VariantAccuracy


def test_variant_accuracy_counts_where_the_shape_is_right():
    names = (SEMANTIC_CLASSES[0], *HARD_CLASSES)

    def sample(label, predicted):
        maps = dict(gt_sem_seg=label, pred_sem_seg=predicted)
        return {
            key: dict(data=torch.tensor([[[names.index(name) for name in value]]]))
            for key, value in maps.items()
        }

    metric = VariantAccuracy()
    label = ['ring circle', 'ring circle', 'bar cross', 'ring circle', 'background', 'bar', 'ring']
    first = ['ring circle', 'bar circle', 'bar cross', 'ring cross', 'ring cross', 'ring', 'ring']
    metric.process({}, [sample(label, first)])
    metric.process({}, [sample(label[:1], ['background']), sample(label[:1], ['bar circle'])])
    # right, wrong, right; another shape, background and beacons don't count; wrong
    assert metric.evaluate(3) == {'variant': 50.0}
    metric.process({}, [sample(['background'], ['ring'])])
    assert metric.evaluate(1) == {'variant': 0.0}
