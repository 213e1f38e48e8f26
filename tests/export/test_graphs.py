"""Graphs against torch: ONNX in onnxruntime, torch.export, TorchScript."""

import json
import re
import sys

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from mmengine.config import Config
from mmengine.utils import digit_version
from mmseg.structures import SegDataSample
from PIL import Image

from mmivit.apis.models import build_model
from mmivit.errors import CheckpointError, ExportError
from mmivit.export import export, parity, targets, write_onnx
from mmivit.export.benchmark import scatter
from mmivit.export.targets import BackboneTarget, SegmentorTarget, find_target
from mmivit.models import IViT
from tests.conftest import CONFIGS, ROOT, run_tool
from tests.datasets.test_loaders import ReadTile  # noqa: F401, registered
from tests.export.test_parity import GRIDS, Landmarks

pytestmark = pytest.mark.skipif(
    digit_version(torch.__version__) < digit_version('2.5.0'), reason='its exporter is too old'
)
SEGMENTOR, DETECTOR = CONFIGS / 'upernet_ivit_shapes.py', CONFIGS / 'mask_rcnn_ivit_shapes.py'
ARCH = dict(depths=(1, 1, 1, 1), widths=(32, 64, 128, 256))  # exports three times as fast as nano
# Batch, height, width.
SIZES = ((1, 31, 31), (2, 112, 137), (1, 64, 400), (2, 224, 224), (1, 333, 250))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """The demo's models, smaller, as after a training that moved every parameter."""
    folder = tmp_path_factory.mktemp('export')
    for config in (SEGMENTOR, DETECTOR):
        small = folder / config.name
        arch = f'dict(_delete_=True, **{ARCH})'
        small.write_text(f"_base_ = '{config}'\nmodel = dict(backbone=dict(arch={arch}))\n")
        cfg = Config.fromfile(small)
        meta = dict(dataset_meta=dict(classes=cfg.metainfo.classes))
        state_dict = scatter(build_model(cfg)).state_dict()
        torch.save(dict(state_dict=state_dict, meta=meta), folder / f'{config.stem}.pth')
    return folder


@pytest.fixture(scope='module')
def segmentor(folder):
    """The finished command that exported UperNet, and what it wrote."""
    out = folder / 'graphs' / 'upernet.onnx'
    config, checkpoint = folder / SEGMENTOR.name, folder / f'{SEGMENTOR.stem}.pth'
    done = run_tool('export.py', config, checkpoint, out, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [path.name for path in out.parent.iterdir()] == ['upernet.onnx']
    return done, out


def test_the_command_exports_upernet_and_prints_how_it_compares(segmentor):
    done, _ = segmentor
    assert '| model | batch x height x width | largest difference |\n|---|---|---:|' in done.stdout
    rows = re.findall(r'^\| \S+ \| (\d+) x (\d+) x (\d+) \| (\S+) \|$', done.stdout, re.M)
    assert [tuple(map(int, row[:3])) for row in rows] == list(parity.SIZES)
    assert all(0 < float(row[3]) <= 1e-4 for row in rows)
    assert 'logits: float32, batch x classes x height x width' in done.stdout


def logits_of_mmseg(model, images):
    """Those of its own test step, (B, classes, H, W), of images (B, 3, H, W)."""
    size = tuple(images.shape[2:])  # mmseg takes a torch.Size for a window's
    samples = [SegDataSample(metainfo=dict(img_shape=size, ori_shape=size)) for _ in images]
    with torch.no_grad():
        tested = model.test_step(dict(inputs=list(images), data_samples=samples))
    return torch.stack([sample.seg_logits.data for sample in tested])


def test_upernet_gives_the_logits_of_mmseg(segmentor, folder):
    model = build_model(Config.fromfile(folder / SEGMENTOR.name))
    model.load_state_dict(torch.load(folder / f'{SEGMENTOR.stem}.pth')['state_dict'])
    session = onnxruntime.InferenceSession(str(segmentor[1]))
    for batch, *size in SIZES:
        images = torch.randint(256, (batch, 3, *size), dtype=torch.uint8)
        (logits,) = session.run(None, {'image': images.float().numpy()})
        expected = logits_of_mmseg(model, images).numpy()
        assert logits.shape == expected.shape == (batch, 6, *size)
        assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max()


def test_a_segmentor_that_pads_in_testing():
    cfg = Config.fromfile(SEGMENTOR)
    cfg.model.data_preprocessor.update(test_cfg=dict(size_divisor=64), pad_val=3)
    model = scatter(build_model(cfg))
    target = find_target(model, cfg)
    assert isinstance(target, SegmentorTarget)
    images = torch.randint(256, (2, 3, 65, 100))
    with torch.no_grad():
        logits = target.graph(images.float())
    torch.testing.assert_close(logits, logits_of_mmseg(model, images), rtol=1e-4, atol=1e-4)


def test_a_graph_says_what_it_takes_and_holds_nothing_of_this_machine(segmentor):
    graph = onnx.load(segmentor[1])
    meta = {entry.key: entry.value for entry in graph.metadata_props}
    assert 'BGR, 0 to 255' in meta['image']
    assert json.loads(meta['classes']) == list(Config.fromfile(SEGMENTOR).metainfo.classes)
    (image,) = graph.graph.input
    dims = [dim.dim_param or dim.dim_value for dim in image.type.tensor_type.shape.dim]
    assert dims == ['batch', 3, 'height', 'width']
    assert str(ROOT).encode() not in segmentor[1].read_bytes()


@pytest.mark.parametrize(
    ('loader', 'content'),
    [
        (dict(type='LoadImageFromFile'), 'BGR, 0 to 255, as loaded by LoadImageFromFile;'),
        (
            dict(type='LoadImageFromFile', color_type='grayscale'),
            "grey, 0 to 255, as loaded by LoadImageFromFile(color_type='grayscale');",
        ),
        (
            dict(type='LoadImageFromFile', color_type='unchanged'),
            "width, as loaded by LoadImageFromFile(color_type='unchanged');",
        ),
        (dict(type='ReadTile'), 'width, as loaded by ReadTile;'),
    ],
)
def test_a_graph_says_how_the_config_loads_images(loader, content):
    cfg = Config.fromfile(SEGMENTOR)
    cfg.test_dataloader.dataset.pipeline[0] = loader
    cfg.model.data_preprocessor.update(bgr_to_rgb=False, rgb_to_bgr=True)  # says nothing of it
    assert content in find_target(build_model(cfg), cfg).takes


@pytest.fixture(scope='module')
def photographs(folder):
    """Two of them, larger and smaller than the graph's images, wide and high."""
    photographs = folder / 'photographs'
    photographs.mkdir()
    for name, size in (('a.jpg', (190, 260)), ('b.png', (101, 77))):
        image = np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)
        cv2.imwrite(str(photographs / name), cv2.GaussianBlur(image, (0, 0), 3))
    return photographs


def test_a_graph_predicts_what_its_config_does(segmentor, folder, photographs):
    """To every pixel, by the command and by the document's example."""
    config, checkpoint = folder / SEGMENTOR.name, folder / f'{SEGMENTOR.stem}.pth'
    for name, model in (('config', (config, checkpoint)), ('graph', (segmentor[1],))):
        done = run_tool('predict.py', *model, photographs, '--out', folder / name, cwd=folder)
        assert done.returncode == 0, done.stderr[-3000:]
    for name in ('a.jpg', 'b.png'):
        records = [
            json.loads((folder / out / 'predictions' / f'{name}.json').read_text())
            for out in ('config', 'graph')
        ]
        assert records[0] == records[1]
        one, two = (
            Image.open(folder / out / 'labels' / f'{name}.png') for out in ('config', 'graph')
        )
        assert one.getpalette() == two.getpalette()
        assert np.array_equal(one, two)
        pictures = (
            cv2.imread(f'{folder / out}/pictures/{name}.jpg') for out in ('config', 'graph')
        )
        assert len({picture.shape[0] for picture in pictures}) == 1


def test_the_documents_example_runs(segmentor, folder, photographs, monkeypatch):
    text = (ROOT / 'docs' / 'export.md').read_text()
    (example,) = re.findall(r'```python\n(.*?label_map.*?)```', text, re.S)
    monkeypatch.chdir(photographs)
    monkeypatch.syspath_prepend(ROOT / 'mmivit' / 'export')
    (photographs / 'upernet.onnx').symlink_to(segmentor[1])
    (photographs / 'photo.jpg').symlink_to('a.jpg')
    names = {}
    exec(example, names)
    assert np.array_equal(names['labels'], Image.open(folder / 'graph/labels/a.jpg.png'))


def test_a_detectors_backbone_alone(folder, monkeypatch):
    """Compared with mmdet's own preprocessing, which pads to multiples of 32."""
    monkeypatch.setattr(targets, 'SIZES', SIZES)
    out = folder / 'backbone.onnx'
    config, checkpoint = folder / DETECTOR.name, folder / f'{DETECTOR.stem}.pth'
    result = export(str(config), str(checkpoint), out, backbone=True)
    assert result.what == 'IViT, the backbone of MaskRCNN'
    assert [(p.batch, p.height, p.width) for p in result.parities] == list(SIZES)
    assert all(p.difference <= 1e-4 for p in result.parities)
    maps = onnxruntime.InferenceSession(str(out)).run(
        None, {'image': np.zeros((1, 3, 33, 100), np.float32)}
    )
    assert [y.shape for y in maps] == [(1, 64, 8, 16), (1, 128, 4, 8), (1, 256, 2, 4)]


def test_a_backbone_says_what_it_takes_and_gives():
    target = BackboneTarget(IViT(ARCH, in_channels=5, out_indices=(1, 3)), channels=5)
    assert target.description == {
        'image': 'float32, batch x 5 x height x width, normalised',
        'map0, map1': 'float32, batch x channels x height x width each, finest first',
    }


def test_a_model_without_a_backbone_is_no_target():
    with pytest.raises(ExportError, match='Identity has no backbone of its own'):
        find_target(torch.nn.Identity(), Config(dict(model=dict())))


def test_a_module_that_torch_cannot_export(tmp_path):
    class Bright(torch.nn.Module):
        def forward(self, image):
            return image if image.mean() > 0 else -image

    with pytest.raises(ExportError, match='torch cannot export Bright: '):
        write_onnx(Bright(), tmp_path / 'bright.onnx', ['image'])
    assert not list(tmp_path.iterdir())


def test_nothing_is_left_of_a_graph_that_differs(folder, monkeypatch):
    def write(graph, path, *args):
        path.write_bytes(b'graph')

    def pairs(*args):
        raise ExportError('differs')

    monkeypatch.setattr(targets, 'write_onnx', write)
    monkeypatch.setattr(targets, 'pairs', pairs)
    out = folder / 'wrong' / 'out.onnx'
    with pytest.raises(ExportError, match='differs'):
        export(str(folder / SEGMENTOR.name), str(folder / f'{SEGMENTOR.stem}.pth'), out)
    assert not list(out.parent.iterdir())


def test_what_the_command_refuses(folder, tmp_path, monkeypatch):
    config, checkpoint = str(folder / SEGMENTOR.name), str(folder / f'{SEGMENTOR.stem}.pth')
    out = tmp_path / 'out.onnx'
    with pytest.raises(ExportError, match=r'ends in \.onnx'):
        export(config, str(out), checkpoint)
    with pytest.raises(CheckpointError, match=r'another model: 2 of .*conv_seg'):
        export(config, checkpoint, out, cfg_options={'model.decode_head.num_classes': 7})
    with pytest.raises(CheckpointError, match=r'another model: .*decode_head'):
        export(str(CONFIGS / 'upernet_ivit_nano.py'), str(backbone_alone(tmp_path)), out)
    options = {'model.data_preprocessor.test_cfg': dict(size=(512, 512))}
    with pytest.raises(ExportError, match='only size_divisor'):
        export(config, checkpoint, out, cfg_options=options)
    out.write_bytes(b'kept')
    with pytest.raises(FileExistsError, match='--force'):
        export(config, checkpoint, out)
    assert out.read_bytes() == b'kept'
    monkeypatch.setitem(sys.modules, 'onnxscript', None)
    with pytest.raises(ExportError, match='onnxscript cannot be imported: python -m pip install'):
        export(config, checkpoint, out, force=True)


def backbone_alone(folder):
    state_dict = {f'backbone.{k}': v for k, v in IViT('nano').state_dict().items()}
    torch.save(dict(state_dict=state_dict), folder / 'backbone.pth')
    return folder / 'backbone.pth'


def test_a_missing_checkpoint_is_one_line(tmp_path):
    done = run_tool('export.py', SEGMENTOR, 'none.pth', 'out.onnx', cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith('export: ')
    assert 'none.pth' in done.stderr
    assert 'Traceback' not in done.stderr
    assert not list(tmp_path.iterdir())


def test_torch_export_of_content_and_locality():
    graph, Dim = Landmarks().eval(), torch.export.Dim
    shapes = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},)
    with torch.no_grad():
        program = torch.export.export(graph, (torch.rand(2, 32, 14, 18),), dynamic_shapes=shapes)
        for batch, *size in GRIDS:
            images = 256 * torch.rand(batch, 32, *size)
            for y, expected in zip(program.module()(images), graph(images)):
                torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)


def test_torch_export_of_the_backbone():
    model = scatter(IViT(ARCH)).eval()
    Dim = torch.export.Dim  # later than torch 2.1
    shapes = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},)
    with torch.no_grad():
        program = torch.export.export(model, (torch.rand(2, 3, 224, 288),), dynamic_shapes=shapes)
        for size in ((1, 35, 35), (2, 112, 137), (1, 64, 400), (3, 224, 224), (1, 333, 250)):
            images = torch.rand(size[0], 3, *size[1:])
            for y, expected in zip(program.module()(images), model(images)):
                torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
        # Where one token is left, torch.export wants a program of its own.
        with pytest.raises(Exception, match=r'\[2\] >= 35'):
            program.module()(torch.rand(1, 3, 34, 64))


def test_torchscript_trace_of_the_backbone():
    """A trace fixes the landmark grid: it serves sizes where that is not clamped, from 195 up."""
    model = scatter(IViT('nano')).eval()
    with torch.no_grad():
        trace = torch.jit.trace(model, torch.rand(1, 3, 224, 288))
        for size in ((1, 224, 288), (2, 195, 195), (1, 333, 250)):
            images = torch.rand(size[0], 3, *size[1:])
            for y, expected in zip(trace(images), model(images)):
                torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
        # Wrong without an error, as docs/export.md says.
        small, large = torch.rand(1, 3, 112, 137), torch.rand(1, 3, 224, 288)
        assert (trace(small)[3] - model(small)[3]).abs().max() > 1e-3
        trace = torch.jit.trace(model, small)
        assert (trace(large)[3] - model(large)[3]).abs().max() > 1e-3
