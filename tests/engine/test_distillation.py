"""Distillation: the loss by its definition, what learns, where a student begins, bad teachers."""

import pytest
import timm
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import METRICS, MODELS
from mmengine.structures import BaseDataElement

from mmivit.errors import CheckpointError, LaunchError
from mmivit.models.classifier import IViTClassifier
from mmivit.models.ivit import name_arch, read_sizes
from mmivit.weights.agreement import agreement
from tests.conftest import CONFIGS
from tests.weights.states import randomise, small_caformer

ARCH = dict(depths=(1, 1, 2, 2), widths=(8, 16, 32, 64))
NANO = dict(depths=(2, 2, 4, 2), widths=(32, 64, 128, 256))
BLOCKS = ['stages.2.blocks.0', 'stages.2.blocks.1', 'stages.3.blocks.0', 'stages.3.blocks.1']


@pytest.fixture(scope='module')
def teacher(tmp_path_factory):
    """A file of a small classifier with MHSA."""
    path = tmp_path_factory.mktemp('teacher') / 'teacher.pth'
    model = randomise(IViTClassifier(ARCH, num_classes=5, attention='mhsa'))
    torch.save(model.state_dict(), path)
    return path


def build(teacher, arch=ARCH, **options):
    student = dict(type='mmivit.IViTClassifier', arch=arch, **options.pop('student', {}))
    config = dict(type='mmivit.DistilledIViT', teacher=str(teacher), student=student, **options)
    return MODELS.build(config)


def images():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def walk(model, x):
    """The inputs and outputs of all blocks of stages 3 and 4, and the last map, one by one."""
    calls, x = [], model.stem(x)
    for i, stage in enumerate(model.stages):
        x = stage.downsample(x.permute(0, 2, 3, 1))
        for block in stage.blocks:
            before, x = x, block(x)
            if i >= 2:
                calls.append((before, x))
        x = x.permute(0, 3, 1, 2)
    return calls, x


def squares(one, other):
    """Mean over images of |one - other|^2 / |other|^2."""
    pairs = zip(one.double(), other.double())
    return sum((((a - b) ** 2).sum() / (b**2).sum()).item() for a, b in pairs) / len(one)


def test_the_loss_is_that_of_its_definition(teacher):
    model = build(teacher, by_block=False, output_weight=0.5)
    losses = model(images(), mode='loss')
    with torch.no_grad():
        own, last = walk(model.student, images())
        theirs, taught = walk(model.teacher, images())
        expected = [squares(a, b) for (_, a), (_, b) in zip(own, theirs, strict=True)]
        p, q = (F.softmax(model.teacher.head(x), 1).double() for x in (taught, last))
    assert len(expected) == 4
    assert losses['loss_features'].item() == pytest.approx(sum(expected) / 4, rel=1e-4)
    divergence = (p * (p / q).log()).sum(1).mean().item()
    assert losses['loss_outputs'].item() == pytest.approx(0.5 * divergence, rel=1e-3, abs=1e-7)
    assert losses['error_stages.3'].item() ** 2 == pytest.approx(expected[-1], rel=0.1)


def test_by_block_every_block_starts_from_the_teachers_features(teacher):
    model = build(teacher)
    losses = model(images(), mode='loss')
    assert 'loss_outputs' not in losses
    with torch.no_grad():
        theirs, _ = walk(model.teacher, images())
        blocks = [model.student.get_submodule(name) for name in BLOCKS]
        expected = [squares(f(x), y) for f, (x, y) in zip(blocks, theirs, strict=True)]
    assert losses['loss_features'].item() == pytest.approx(sum(expected) / 4, rel=1e-4)
    learning = {n for n, p in model.student.named_parameters() if p.requires_grad}
    assert learning == {
        n for n, _ in model.student.named_parameters() if n.startswith(tuple(BLOCKS))
    }


@pytest.mark.parametrize('learns', ['', r'stages\.[23].*token_mixer'])
def test_the_student_alone_learns(learns, teacher):
    model = build(teacher, by_block=False, learns=learns).train()
    before = {name: t.clone() for name, t in model.teacher.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sum(loss for name, loss in model(images(), mode='loss').items() if 'loss' in name).backward()
    optimizer.step()
    assert not model.teacher.training
    assert all(p.grad is None for p in model.teacher.parameters())
    assert all(torch.equal(t, before[name]) for name, t in model.teacher.state_dict().items())
    for name, parameter in model.student.named_parameters():
        wanted = not name.startswith('head.') and (not learns or 'token_mixer' in name[9:])
        wanted = wanted and (not learns or name.startswith(('stages.2', 'stages.3')))
        assert (parameter.grad is not None) is wanted, name
    # Checkpoints, averages and the broadcast between processes are the student's.
    assert all(name.startswith('student.') for name in model.state_dict())
    assert not any('teacher' in name for name, _ in model.named_modules())
    model.to(torch.float64)
    assert next(model.teacher.parameters()).dtype == torch.float64


def test_a_student_begins_near_its_teacher_and_is_judged_as_agreement_does(teacher):
    model = build(teacher).eval()
    samples = [BaseDataElement(label=1)]
    with torch.no_grad():
        (sample,) = model(images()[:1], samples, mode='predict')
    found = agreement(model.student, images()[:1], model.teacher)
    assert sample.errors == pytest.approx({f.stage: f.error for f in found}, rel=1e-4)
    assert sample.taught == model.teacher(images()[:1]).argmax().item()
    for name, parameter in model.student.named_parameters():
        if name.endswith(('content', 'locality')):
            torch.nn.init.constant_(parameter, float(name.endswith('content')))  # as the paper's
    paper = agreement(model.student, images()[:1], model.teacher)
    assert sample.errors['stages.3'] < min(0.1, paper[-1].error)


@pytest.mark.parametrize('use_mlp_head', [True, False])
def test_a_caformer_teaches_with_its_own_head(use_mlp_head, tmp_path):
    caformer = small_caformer(num_classes=7, use_mlp_head=use_mlp_head)
    torch.save(caformer.state_dict(), tmp_path / 'caformer.pth')
    model = build(tmp_path / 'caformer.pth', NANO)
    assert model.teacher.num_classes == 7
    with torch.no_grad():
        expected = caformer(images())
        torch.testing.assert_close(model.teacher(images()), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            model.student.forward_head(model.teacher.forward_features(images())),
            expected,
            rtol=1e-4,
            atol=1e-4,
        )


def test_a_detectors_backbone_teaches_its_features(teacher, tmp_path):
    weights = torch.load(teacher)
    weights = {f'backbone.{n}': t for n, t in weights.items() if not n.startswith('head.')}
    torch.save(weights, tmp_path / 'detector.pth')
    losses = build(tmp_path / 'detector.pth')(images(), mode='loss')
    assert set(losses) == {'loss_features', 'error_stages.2', 'error_stages.3'}


def test_any_two_models_with_the_same_blocks_will_do(teacher):
    """Configs in place of a file, and of an iViT: that is how other architectures come in."""
    own = dict(type='mmivit.IViTClassifier', arch=ARCH, num_classes=5)
    model = MODELS.build(
        dict(
            type='mmivit.DistilledIViT',
            teacher=dict(own, attention='mhsa'),
            student=own,
            by_block=False,
        )
    )
    assert set(model(images(), mode='loss')) >= {'loss_features', 'loss_outputs'}
    named = dict(model.student.named_parameters())
    assert all((named[name] == 2).all() for name in named if name.endswith('locality'))


def test_a_plain_vision_transformer_learns_from_timms(tmp_path):
    cfg = Config.fromfile(CONFIGS / 'examples/distill_vit.py').model
    small = dict(depth=2, embed_dim=48, num_heads=3)
    cfg.teacher.update(pretrained=False, **small)
    cfg.student.update(small)
    model = MODELS.build(cfg)
    assert model.blocks == ['blocks.0', 'blocks.1']
    x = torch.randn(1, 3, 96, 128)  # of another shape than either was made for
    losses = model(x, mode='loss')
    assert set(losses) == {'loss_features', 'loss_outputs', 'error_blocks'}
    assert 0 < losses['error_blocks'] < 1
    weights = {n.removeprefix('student.'): t for n, t in model.state_dict().items()}
    torch.save(weights, tmp_path / 'vit.pth')
    loaded = timm.create_model(
        cfg.student.model_name,
        checkpoint_path=str(tmp_path / 'vit.pth'),
        dynamic_img_size=True,
        **small,
    )
    same = loaded.eval().forward_features(x) - model.student.eval().forward_features(x)
    assert same.abs().max() == 0


def wrong_teachers():
    resnet = {'conv1.weight': torch.zeros(8, 3, 7, 7), 'layer1.0.conv1.weight': torch.zeros(8)}
    larger = IViTClassifier(NANO, num_classes=0, attention='mhsa').state_dict()
    landmarks = IViTClassifier(ARCH, num_classes=0).state_dict()
    incomplete = {n: t for n, t in larger.items() if 'stages.3.blocks.1' not in n}
    return [
        (resnet, 'seems to be a ResNet'),
        (larger, 'it is of size nano, the student of'),
        (landmarks, "trained with attention='imhsa'; a teacher has ordinary attention"),
        (incomplete, 'it is of size'),
    ]


@pytest.mark.parametrize(('weights', 'said'), wrong_teachers())
def test_wrong_teachers_are_refused_in_a_line(weights, said, tmp_path):
    torch.save(weights, tmp_path / 'wrong.pth')
    with pytest.raises(CheckpointError, match=said) as error:
        build(tmp_path / 'wrong.pth')
    assert 'wrong.pth' in str(error.value)
    assert '\n' not in str(error.value)


def test_what_names_nothing_is_refused(teacher):
    with pytest.raises(LaunchError, match='no module of the student'):
        build(teacher, blocks='layers')
    with pytest.raises(LaunchError, match='no parameter of the student'):
        build(teacher, learns='layers')


def test_the_metric_is_the_mean_over_images():
    metric = METRICS.build(dict(type='mmivit.DistillationMetric'))
    samples = [
        dict(errors={'stages.2': 0.1}, predicted=1, taught=1, label=2),
        dict(errors={'stages.2': 0.3}, predicted=2, taught=1, label=2),
    ]
    metric.process({}, samples)
    assert metric.evaluate(2) == pytest.approx(
        {
            'student/error_stages.2': 0.2,
            'student/agreement': 50,
            'student/accuracy': 50,
            'student/teacher_accuracy': 0,
        }
    )


@pytest.mark.parametrize('path', sorted(CONFIGS.glob('distill_ivit*.py')), ids=lambda p: p.stem)
def test_shipped_configs_name_a_teacher_of_the_students_size(path):
    model = Config.fromfile(path).model
    assert set(model) == {'type', 'teacher', 'student', 'data_preprocessor'}
    if not model.teacher.startswith('timm://'):
        return
    name = model.teacher.removeprefix('timm://')
    assert name in timm.list_pretrained('caformer*')
    with torch.device('meta'):
        caformer = timm.create_model(name)
    shapes = {name: tuple(tensor.shape) for name, tensor in caformer.state_dict().items()}
    assert name_arch(read_sizes(shapes)) == model.student.arch
