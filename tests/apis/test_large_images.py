"""Labels without the logits of the whole image, against stock mmseg's with them."""

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from mmivit.apis import large_images
from mmivit.apis.large_images import slide_labels, upsampled_labels
from tests.conftest import CONFIGS


def small_upernet(**test_cfg):
    """UperNet with 150 classes that is quick to run, and its config."""
    cfg = Config.fromfile(CONFIGS / 'upernet_ivit_nano.py')
    cfg.merge_from_dict(
        {
            'model.decode_head.channels': 16,
            'model.decode_head.norm_cfg.type': 'BN',
            'model.auxiliary_head.norm_cfg.type': 'BN',
            'model.test_cfg': test_cfg,
        }
    )
    init_default_scope('mmseg')
    torch.manual_seed(0)
    return cfg, MODELS.build(cfg.model).eval()


@pytest.mark.parametrize('size', [(96, 150), (64, 64), (40, 200), (131, 77)])
def test_sliding_by_rows_gives_the_labels_of_stock_sliding(size):
    _, model = small_upernet(mode='slide', crop_size=(64, 64), stride=(43, 43))
    image = torch.randn(1, 3, *size)
    meta = dict(img_shape=size, ori_shape=size)
    with torch.no_grad():
        expected = model.slide_inference(image, [dict(meta)])[0].argmax(0)
        labels = slide_labels(model, image, meta)
    assert (labels == expected).float().mean() > 0.999  # near-ties may fall either way
    assert labels.shape == size


def test_upsampling_by_classes_gives_the_labels_of_resized_logits(monkeypatch):
    _, model = small_upernet(mode='whole')
    logits = torch.randn(150, 20, 30)
    expected = torch.nn.functional.interpolate(
        logits[None], (77, 90), mode='bilinear', align_corners=False
    )[0].argmax(0)
    monkeypatch.setattr(large_images, 'MAX_LOGITS', 77 * 90 * 8)
    assert torch.equal(upsampled_labels(logits, (77, 90), model), expected)


def test_a_single_channel_is_a_threshold_at_any_size(monkeypatch):
    _, model = small_upernet(mode='whole')
    model.decode_head.threshold = 0.3
    logits = torch.randn(1, 20, 30)
    expected = upsampled_labels(logits, (77, 90), model)
    assert expected.unique().tolist() == [0, 1]
    monkeypatch.setattr(large_images, 'MAX_LOGITS', 100)
    assert torch.equal(upsampled_labels(logits, (77, 90), model), expected)
