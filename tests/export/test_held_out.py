"""Models and graphs on held-out data, judged by the config's own evaluators."""

import importlib.util
import json

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image
from pycocotools.coco import COCO

from mmivit.apis.models import build_model
from mmivit.errors import ExportError
from mmivit.export import runtime, targets
from mmivit.export.benchmark import models_asked, scatter
from mmivit.export.held_out import COLUMNS, GraphModel, HeldOutSet, Judged, judge
from mmivit.utils import timing
from tests.conftest import CONFIGS
from tests.export.toys import write_constants

SIDE = 96  # pixels, to which the detector's config brings the 128 of the data


@pytest.fixture
def detector(shapes, tmp_path, monkeypatch):
    """Config and checkpoint of a detector whose test data are one image."""
    monkeypatch.chdir(shapes)
    found = json.loads((shapes / 'data/shapes/annotations/instances_validation.json').read_text())
    found['images'] = found['images'][:1]
    number = found['images'][0]['id']
    found['annotations'] = [one for one in found['annotations'] if one['image_id'] == number]
    (tmp_path / 'one.json').write_text(json.dumps(found))
    config, checkpoint = tmp_path / 'detector.py', tmp_path / 'detector.pth'
    config.write_text(
        f"_base_ = '{CONFIGS}/examples/heads/mask_rcnn.py'\n"
        f"ann_file = '{tmp_path}/one.json'\n"
        'test_dataloader = dict(dataset=dict(ann_file=ann_file))\n'
        'test_evaluator = dict(ann_file=ann_file)\n'
    )
    model = scatter(build_model(Config.fromfile(config)))
    torch.save(dict(state_dict=model.state_dict()), checkpoint)
    return str(config), str(checkpoint)


def the_truth(path):
    """What a graph without a fault would give of the one image, at the size of the config."""
    coco = COCO(path)
    order = sorted(coco.cats)
    annotations = list(coco.anns.values())
    boxes = np.array([one['bbox'] for one in annotations])
    boxes[:, 2:] += boxes[:, :2]
    masks = []
    for one, (x1, y1, x2, y2) in zip(annotations, boxes):
        mask = Image.fromarray(255 * coco.annToMask(one))
        masks.append(np.asarray(mask.resize((28, 28), Image.BILINEAR, (x1, y1, x2, y2))) / 255)
    return dict(
        boxes=(boxes * SIDE / 128).astype(np.float32),
        scores=np.linspace(0.9, 0.5, len(boxes), dtype=np.float32),
        labels=np.array([order.index(one['category_id']) for one in annotations]),
        masks=np.array(masks, np.float32),
    )


def test_a_model_and_its_graphs_are_judged(detector, tmp_path, monkeypatch):
    truth = the_truth(tmp_path / 'one.json')

    def write(graph, path, outputs, channels, metadata, batch):
        assert outputs == list(truth)
        write_constants(path, truth, metadata)

    monkeypatch.setattr(targets, 'write_onnx', write)
    monkeypatch.setattr(targets, 'SIZES', ((1, 64, 96), (1, 96, 64)))
    monkeypatch.setattr(timing, 'ROUNDS', 2)
    in_torch, *graphs = judge(*detector, [], tmp_path, 0)
    assert [graph.runs_in for graph in graphs] == ['onnxruntime', 'OpenVINO'][: len(graphs)]
    assert len(graphs) == 1 + bool(importlib.util.find_spec('openvino'))
    assert in_torch.model == 'detector'
    assert in_torch.scores['box AP'] < 50
    for graph in graphs:
        assert graph.scores['box AP'] == pytest.approx(100)
        assert 70 < graph.scores['mask AP'] <= 100
        assert graph.parity.startswith('0 of ')
        assert graph.size > 3136 * len(truth['masks'])
        assert graph.seconds > 0


def test_why_a_model_has_no_graph(detector, tmp_path):
    config = tmp_path / 'soft.py'
    config.write_text(
        f"_base_ = '{detector[0]}'\n"
        "model = dict(test_cfg=dict(rcnn=dict(nms=dict(_delete_=True, type='soft_nms'))))\n"
    )
    (judged,) = judge(str(config), detector[1], [], tmp_path, 0)
    assert judged.cells()[1].startswith('refused: MaskRCNN cannot be exported whole: test_cfg.nms')


def test_label_maps_are_judged(shapes, tmp_path, monkeypatch):
    monkeypatch.chdir(shapes)
    cfg = Config.fromfile(CONFIGS / 'upernet_ivit_shapes.py')
    cfg.test_dataloader.dataset.indices = 1
    held_out = HeldOutSet(cfg, tmp_path)
    assert held_out.size == (1, 128, 128)
    labels = held_out.runner.test_loop.dataloader.dataset[0]['data_samples'].gt_sem_seg.data[0]
    logits = (np.arange(6)[:, None, None] == labels.numpy()).astype(np.float32)[None]
    meta = dict(task='segmentation', classes='[]', palette='[]', prepare='[]', colors='color')
    write_constants(tmp_path / 'graph.onnx', dict(logits=logits), meta)
    model = GraphModel(runtime.Graph(tmp_path / 'graph.onnx'))
    assert held_out.score(model) == {'mIoU': pytest.approx(100)}


def test_a_row_of_the_table():
    judged = Judged('x', 'onnxruntime', 2_340_000, '9 of 9', {'box AP': 45.25, 'mIoU': 3.0}, 0.0123)
    assert dict(zip(judged.columns, judged.cells())) == dict(
        zip(COLUMNS, ['x', 'onnxruntime', '2.3', '9 of 9', 'box AP 45.2, mIoU 3.0', '12.3'])
    )


def test_models_are_followed_by_what_belongs_to_them():
    found = models_asked(['nano', 'a.py', 'b.py', 'b.pth', 'c.py', 'c.pth', 'c.onnx', 'c.xml'])
    assert [(one.model, one.checkpoint) for one in found] == [
        ('nano', None),
        ('a.py', None),
        ('b.py', 'b.pth'),
        ('c.py', 'c.pth'),
    ]
    assert [path.name for path in found[-1].graphs] == ['c.onnx', 'c.xml']
    for wrong in (
        ['a.pth'],
        ['nano', 'a.pth'],
        ['a.py', 'a.onnx'],
        ['a.py', 'a.pth', 'b.pth'],
        ['a'],
    ):
        with pytest.raises(ExportError, match=f'^{wrong[-1]}: expected nano, tiny'):
            models_asked(wrong)
