"""Pictures of every kind of model, and bad input named."""

import re
from dataclasses import replace

import cv2
import numpy as np
import pytest
import timm
import torch
from mmengine.config import Config

from mmivit.analysis.attention_pictures import (
    _as_kind,
    _landmark,
    _load_config,
    _load_timm,
    _queries_page,
    _summary,
    show_attention,
)
from mmivit.apis.models import build_model
from mmivit.errors import CheckpointError, LaunchError
from mmivit.models import build_attention
from tests.conftest import CONFIGS, run_tool
from tests.faulty_data import header_of_png

SEGMENTOR = CONFIGS / 'upernet_ivit_shapes.py'
DETECTOR = CONFIGS / 'mask_rcnn_ivit_shapes.py'
CLASSES = 5


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A photo of an odd size with a white rectangle, and random weights of three models.

    Those of queries and keys are small, so that all maps are one pooling.
    """
    folder = tmp_path_factory.mktemp('pictures')
    photo = np.zeros((131, 203, 3), np.uint8)
    photo[40:90, 120:180] = 255
    cv2.imwrite(str(folder / 'photo.png'), photo)
    torch.manual_seed(0)
    for config in (SEGMENTOR, DETECTOR):
        cfg = Config.fromfile(config)
        weights = with_alike_maps(build_model(cfg)).state_dict()
        meta = dict(dataset_meta=dict(cfg.metainfo))
        torch.save(dict(state_dict=weights, meta=meta), folder / f'{cfg.default_scope}.pth')
    import timm

    weights = with_alike_maps(timm.create_model('ivit_nano', num_classes=CLASSES)).state_dict()
    torch.save(weights, folder / 'timm.pth')
    return folder


def with_alike_maps(model):
    for name, parameter in model.named_parameters():
        if name.endswith('.qkv.weight'):
            parameter.data[: 2 * parameter.shape[1]] *= 0.1
    return model


def arguments(folder, scope):
    source = dict(mmseg=dict(config=SEGMENTOR), mmdet=dict(config=DETECTOR))
    source = source.get(scope, dict(timm='ivit_nano'))
    return dict(image=folder / 'photo.png', checkpoint=str(folder / f'{scope}.pth'), **source)


def load(folder, scope):
    settings = arguments(folder, scope)
    if scope == 'timm':
        return _load_timm(settings['timm'], settings['checkpoint'], settings['image'])
    return _load_config(str(settings['config']), settings['checkpoint'], settings['image'])


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg', 'timm'])
def test_the_input_shows_the_photo_where_the_view_says(folder, scope):
    _, view = load(folder, scope)
    assert view.image.shape == (131, 203, 3)
    bright = view.inputs[0].mean(0) > view.inputs.max() / 2
    rows, columns = bright.any(1).nonzero(), bright.any(0).nonzero()
    found = [columns.min(), columns.max() + 1, rows.min(), rows.max() + 1]
    x, y = view.scale
    expected = [120 * x, 180 * x, 40 * y, 90 * y]
    assert [int(edge) for edge in found] == pytest.approx(expected, abs=1)


def test_landmarks_are_those_of_the_pooling():
    for size in (3, 7, 8, 14, 25):
        for token in range(size):
            index, (start, stop) = _landmark(token, size, 7)
            impulse = torch.zeros(1, 1, size)
            impulse[..., token] = 1
            pooled = torch.nn.functional.adaptive_avg_pool1d(impulse, min(7, size))
            assert start <= token < stop
            assert pooled[0, 0, index] == pytest.approx(1 / (stop - start))


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg', 'timm'])
def test_every_kind_of_model_end_to_end(folder, scope, tmp_path):
    settings = dict(arguments(folder, scope), out=tmp_path / 'out', points=[(150, 60)])
    written, summary = show_attention(**settings)
    layer = 'stages.2.blocks.3.token_mixer' if scope == 'timm' else 'backbone.stages.2.blocks.3'
    kinds = ['heads', 'landmarks', 'queries', 'attentions']
    assert [path.name.split('.')[-2] for path in written] == kinds
    assert summary.startswith(layer)
    assert 'content by head: 1.00 1.00 1.00 1.00\n' in summary
    assert re.search(r'effective rank 1\.\d+ .*\n  COLLAPSED in 4 of 4 heads', summary)
    assert sorted(written) == sorted((tmp_path / 'out').iterdir())
    for path in written:
        assert path.name.startswith(f'photo.{layer}')
        assert cv2.imread(str(path)).std() > 0
    with pytest.raises(FileExistsError, match='--force'):
        show_attention(**settings)
    before = written[0].read_bytes()
    again = show_attention(**{**settings, 'points': [(0, 0)]}, force=True)
    assert again == (written, summary)
    assert written[0].read_bytes() != before
    if scope == 'timm':
        more = show_attention(**settings, layers=['stages.3.blocks.0', 'stages.2.blocks.0'])
        assert len(more.files) == 8
        assert len(re.findall('effective rank', more.summary)) == 2


def test_an_attention_without_landmarks(folder, tmp_path):
    (tmp_path / 'mhsa.py').write_text(
        f"_base_ = '{SEGMENTOR}'\nmodel = dict(backbone=dict(attention='mhsa'))\n"
    )
    model = build_model(Config.fromfile(tmp_path / 'mhsa.py'))
    torch.save(model.state_dict(), tmp_path / 'mhsa.pth')
    written, summary = show_attention(
        folder / 'photo.png', str(tmp_path / 'mhsa.pth'), tmp_path, str(tmp_path / 'mhsa.py')
    )
    assert [path.name.split('.')[-2] for path in written] == ['heads', 'attentions']
    assert 'effective rank' in summary
    assert 'locality' not in summary


@pytest.mark.parametrize(('content', 'locality'), [(1, 0), (0, 2)])
def test_what_queries_read_is_drawn_over_the_landmarks_blocks(content, locality):
    torch.manual_seed(0)
    module, x = build_attention('imhsa', 32, 2), torch.randn(1, 16, 10, 32)
    module.content.data.fill_(content)
    module.locality.data.fill_(locality)
    title, lines = _queries_page('layer', module, x, [(5, 5)], [3 * 10 + 4])
    assert 'L = 7 x 7 landmarks' in title
    assert [line[0].title for line in lines] == [
        f'point 5,5\n{part}' for part in ('content alone', 'locality alone', 'both')
    ]
    by_content, by_locality, both = (line[1].map for line in lines)
    assert lines[2][1].title == f'head 0: content {content:.2f}\nlocality {locality:.2f}'
    assert both.shape == (16, 10)
    if locality:  # token 3, 4 lies nearest to landmark 1, 3, whose block begins in row 2
        assert np.allclose(both, by_locality)
        assert (both == both.max()).nonzero()[0].tolist()[0] == 2
        assert np.allclose(by_content, 1)
    else:
        assert np.allclose(both, by_content)
        assert np.allclose(by_locality, 1)


def test_of_large_maps_some_rows_are_looked_at():
    module = build_attention('decomposed', 8, 1)
    small, large = (_summary('x', module, torch.randn(1, 16, n, 8)) for n in (16, 17))
    assert 'effective maps: effective rank' in small
    assert 'effective maps, 256 of their rows: effective rank' in large
    assert 'COLLAPSED in 1 of 1 heads' in large


def test_whole_maps_are_shown_as_a_conversion_makes_them():
    module = build_attention('mhsa', 32, 2)
    shown = _as_kind(module, 'imhsa')
    assert torch.equal(shown.qkv.weight, module.qkv.weight)
    assert (shown.content.tolist(), shown.locality.tolist()) == ([0, 0], [2, 2])
    shown.content.data.fill_(0.5)
    assert _as_kind(shown, 'decomposed').content.tolist() == [0.5, 0.5]


@pytest.mark.parametrize('scope', ['mmseg', 'timm'])
def test_enormous_images_are_not_decoded(folder, tmp_path, scope):
    (tmp_path / 'bomb.png').write_bytes(header_of_png(50_000, 50_000))
    with pytest.raises(ValueError, match=r'bomb\.png: more than 89 megapixels'):
        show_attention(**{**arguments(folder, scope), 'image': tmp_path / 'bomb.png', 'out': '.'})


@pytest.mark.parametrize(
    ('change', 'error', 'named'),
    [
        (dict(image='none.png'), FileNotFoundError, 'none.png'),
        (dict(image=SEGMENTOR), ValueError, 'not an image'),
        (dict(checkpoint='none.pth'), FileNotFoundError, 'none.pth'),
        (dict(checkpoint=str(SEGMENTOR)), CheckpointError, 'a text file'),
        (dict(points=[(203, 0)]), ValueError, '203,0.*0 to 202.*0 to 130'),
        (dict(layers=['stages.1']), ValueError, "'stages.1'.*stages.3.blocks.1.token_mixer"),
        (dict(timm='ivit_huge'), ValueError, 'ivit_huge.*ivit_nano'),
        (dict(timm='ivit_tiny'), CheckpointError, 'timm.pth: ivit_tiny: .*size mismatch|Missing'),
    ],
)
def test_bad_input_is_named(folder, tmp_path, change, error, named):
    with pytest.raises(error, match=named) as raised:
        show_attention(**{**arguments(folder, 'timm'), 'out': tmp_path / 'out', **change})
    assert len(str(raised.value).splitlines()) == 1
    assert not (tmp_path / 'out').exists()


def test_models_without_attention_and_of_other_kinds_are_named(folder, tmp_path):
    import timm

    torch.save(timm.create_model('resnet18', num_classes=0).state_dict(), tmp_path / 'resnet.pth')
    with pytest.raises(ValueError, match='ResNet runs no attention'):
        show_attention(folder / 'photo.png', str(tmp_path / 'resnet.pth'), '.', timm='resnet18')
    (tmp_path / 'other.py').write_text("default_scope = 'mmpretrain'\n")
    with pytest.raises(LaunchError, match='must be mmdet or mmseg'):
        show_attention(
            folder / 'photo.png', str(folder / 'timm.pth'), '.', str(tmp_path / 'other.py')
        )


def test_the_command(folder):
    command = ('analysis/show_attention.py', 'photo.png', '--timm', 'ivit_nano')
    command += ('--checkpoint', 'timm.pth', '--out', 'shown', '--layer', 'stages.2.blocks.0')
    done = run_tool(*command, '--points', '0,0', '20,30', cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    files, summary = done.stdout.splitlines()[:4], done.stdout.splitlines()[4:]
    assert files[0] == 'shown/photo.stages.2.blocks.0.token_mixer.heads.png'
    assert all((folder / line).is_file() for line in files)
    assert summary[0].startswith('stages.2.blocks.0.token_mixer: imhsa, ')
    done = run_tool(*command, '--points', '0,999', cwd=folder)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert 'outside the image' in done.stderr


def test_weights_of_another_model_are_refused(folder, tmp_path):
    with pytest.raises(CheckpointError, match=r'mmseg\.pth: it is of another model'):
        show_attention(
            folder / 'photo.png', str(folder / 'mmseg.pth'), tmp_path / 'out', str(DETECTOR)
        )
    assert not (tmp_path / 'out').exists()


def test_a_vision_transformer(folder, tmp_path):
    name = 'vit_tiny_patch16_224_imhsa'
    torch.save(timm.create_model(name, num_classes=3).state_dict(), tmp_path / 'vit.pth')
    written, summary = show_attention(
        folder / 'photo.png', str(tmp_path / 'vit.pth'), tmp_path, timm=name, points=[(150, 60)]
    )
    kinds = ['heads', 'landmarks', 'queries', 'attentions']
    assert [path.name.split('.')[-2] for path in written] == kinds
    assert all(path.name.startswith('photo.blocks.11.attn') for path in written)
    # 131 x 203 pixels, 224 x 347 as it sees them, in patches of 16 the last of which is padded.
    assert summary.startswith('blocks.11.attn: imhsa, 14 x 22 tokens, 1 in front, 3 heads\n')
    _, view = _load_timm(name, str(tmp_path / 'vit.pth'), folder / 'photo.png')
    view = replace(view, patch=(16, 16))
    assert view.token((202, 130), (14, 22)) == (13, 21)
    assert view.token((27, 28), (14, 22)) == (
        int(28.5 * 224 / 131 / 16),
        int(27.5 * 347 / 203 / 16),
    )
