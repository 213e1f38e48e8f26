"""Distillation: a student with landmarks learns to compute what its teacher does, without labels.

A student that starts from the weights of a model with ordinary attention differs from it by what
landmarks summarise. Unlabelled images close the gap: after every block the student's features are
compared with the teacher's. Each block starts from the teacher's features, which brings the
student nearer in less time than training it from end to end (docs/pretraining.md). From end to end
it may learn what the teacher answers, too.

    model = dict(
        type='mmivit.DistilledIViT',
        teacher='timm://caformer_s18.sail_in22k_ft_in1k',
        student=dict(type='mmivit.IViTClassifier', arch='tiny'))

The teacher is an iViT with MHSA, which CAFormer is but for its head, so that both have the same
blocks under the same names. Needs timm.
"""

from __future__ import annotations

import copy
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from timm.models.metaformer import MetaFormer
from torch import Tensor, nn

from mmivit.errors import CheckpointError, LaunchError
from mmivit.models.attention import MHSA, DecomposedMHSA
from mmivit.models.classifier import IViTClassifier
from mmivit.models.ivit import name_arch, read_sizes
from mmivit.registry import METRICS, MODELS
from mmivit.utils.modules import Call, recorded
from mmivit.weights.checkpoint import naming
from mmivit.weights.converters import LOCAL_START, convert, is_optional
from mmivit.weights.sources import TIMM, fetch

LEAST = 1e-12  # of |t|^2, to divide by


@MODELS.register_module()
class DistilledIViT(BaseModel):
    """A student beside the frozen teacher whose weights it starts from.

    Student and teacher are modules with ``forward_features(images)``, as timm's models have, and
    with blocks of the same names. Where the teacher has ``num_classes`` its ``forward_head`` is
    applied to the features of both. Checkpoints hold the student alone, under ``student.``.

    Args:
        teacher: a file, a URL or ``timm://NAME`` of a CAFormer or of an iViT that was trained with
            MHSA; or the config of any model.
        student: the config of a model, ``mmivit.IViTClassifier`` or another. It starts from the
            teacher's weights, its head too, which it keeps.
        blocks: pattern of the names of the modules that are compared.
        learns: pattern of the names of the student's parameters that learn; they need only begin
            so. '' is all but the head.
        by_block: give each block the teacher's features to start from; if not, it gets those of the
            student's block before it, and its errors with them.
        output_weight: weight of the loss of the outputs, which there is if not ``by_block`` and
            where the teacher classifies.
        data_preprocessor: as in every model of MMEngine's; the teacher's mean and deviation.

    Raises:
        CheckpointError: the teacher cannot be read, is another kind of model, of another size than
            the student or trained with another attention.
        LaunchError: no module or no parameter has such a name, or a file's student is no iViT.
    """

    def __init__(
        self,
        teacher: str | dict,
        student: dict,
        blocks: str = r'stages\.[23]\.blocks\.\d+',
        learns: str = '',
        by_block: bool = True,
        output_weight: float = 1.0,
        data_preprocessor: dict | nn.Module | None = None,
    ) -> None:
        super().__init__(data_preprocessor)
        self.student = MODELS.build(student)
        # Not among the sub-modules: nothing of it is trained, saved, averaged or sent around.
        object.__setattr__(self, 'teacher', _build_teacher(teacher, self.student))
        with naming(teacher if isinstance(teacher, str) else 'the teacher'):
            start_from(self.student, self.teacher)
        names = [name for name, _ in self.student.named_modules() if re.fullmatch(blocks, name)]
        if not names:
            raise LaunchError(f'blocks={blocks!r}: no module of the student is called so')
        self.blocks = names
        self.by_block = by_block
        self.output_weight = output_weight
        inside = tuple(f'{name}.' for name in names) if by_block else ''
        for name, parameter in self.student.named_parameters():
            parameter.requires_grad_(
                bool(re.match(learns, name))
                and name.startswith(inside)
                and not name.startswith('head.')
            )
        if not any(parameter.requires_grad for parameter in self.student.parameters()):
            raise LaunchError(f'learns={learns!r}: no parameter of the student begins so')

    def init_weights(self) -> None:
        """Nothing: weights are there from the start."""

    def _apply(self, *args: Any, **kwargs: Any) -> DistilledIViT:
        self.teacher._apply(*args, **kwargs)  # to where the student goes
        return super()._apply(*args, **kwargs)

    def forward(
        self,
        inputs: Tensor,
        data_samples: Sequence[BaseDataElement] | None = None,
        mode: str = 'tensor',
    ) -> Tensor | dict[str, Tensor] | Sequence[BaseDataElement]:
        """What MMEngine's models do with a batch.

        Args:
            inputs: images, (B, C, H, W), normalised.
            data_samples: one for each image; in 'predict' they are returned.
            mode: 'tensor' gives the student's features; 'loss' the losses and, for the log, the
                relative error after each stage's last block; 'predict' the samples with ``errors``,
                the relative errors by stage, and where the teacher classifies ``predicted`` and
                ``taught``, the labels that student and teacher find.
        """
        if mode == 'tensor':
            return self.student.forward_features(inputs)
        with torch.no_grad(), recorded(self.teacher, self.blocks) as theirs:
            taught = self._logits(self.teacher.forward_features(inputs))  # (B, classes)
        if mode == 'loss' and self.by_block:
            calls = {
                name: Call(call.input, self.student.get_submodule(name)(call.input))
                for name, call in theirs.items()
            }
            logits = None
        else:
            with recorded(self.student, self.blocks) as calls:
                logits = self._logits(self.student.forward_features(inputs))
        errors = {
            name: relative_squares(calls[name].output, theirs[name].output) for name in self.blocks
        }
        last = {stage_of(name): error.detach().sqrt() for name, error in errors.items()}
        if mode == 'loss':
            losses = {'loss_features': torch.stack(list(errors.values())).mean()}
            if self.output_weight and taught is not None and logits is not None:
                losses['loss_outputs'] = self.output_weight * divergence(logits, taught)
            return losses | {f'error_{stage}': error.mean() for stage, error in last.items()}
        for i, sample in enumerate(data_samples or ()):
            sample.errors = {stage: error[i].item() for stage, error in last.items()}
            if taught is not None and logits is not None:
                sample.predicted = int(logits[i].argmax())
                sample.taught = int(taught[i].argmax())
        return data_samples or []

    def _logits(self, features: Tensor) -> Tensor | None:
        """What the teacher's head makes of features; None where it has none."""
        if not getattr(self.teacher, 'num_classes', 0):
            return None
        return self.teacher.forward_head(features).float()


def _build_teacher(teacher: str | dict, student: nn.Module) -> nn.Module:
    """A frozen model, in evaluation mode for good."""
    if not isinstance(teacher, str):
        model = MODELS.build(teacher)
    elif isinstance(student, IViTClassifier):
        model = read_teacher(teacher, student)
    else:
        raise LaunchError(
            f'the student is a {type(student).__name__}: one whose teacher is a file is '
            "dict(type='mmivit.IViTClassifier', arch=...)"
        )
    return model.requires_grad_(False).eval()


def read_teacher(source: str, student: IViTClassifier) -> IViTClassifier:
    """An iViT with MHSA and the weights of a file, whose head is the file's own.

    Args:
        source: as for :func:`mmivit.weights.sources.fetch`; a CAFormer or an iViT.
        student: has the channels of the images and, unless the file tells, the width of the heads.

    Raises:
        CheckpointError: there is no such file, it is of another kind, or another attention's.
    """
    mixer = next(part for part in student.modules() if isinstance(part, MHSA))
    with naming(source):
        try:
            weights = fetch(source)
        except CheckpointError as error:
            if not source.startswith(TIMM):
                raise
            reason = str(error).partition(' Where there is a network')[0]
            raise CheckpointError(
                f"{reason} A teacher keeps its head, so take the hub's own file: "
                '--cfg-options model.teacher=model.safetensors'
            ) from error
        converted, report = convert(
            weights,
            target='timm',
            attention='mhsa',
            in_channels=student.in_chans,
            head_dim=mixer.qkv.in_features // mixer.num_heads,
        )
        if report.trained_with != 'mhsa':
            raise CheckpointError(
                f"its weights were trained with attention='{report.trained_with}'; a teacher has "
                "ordinary attention: a CAFormer of timm's, or an iViT with attention='mhsa'"
            )
    head = {name: tensor for name, tensor in converted.items() if name.startswith('head.')}
    teacher = IViTClassifier(
        read_sizes({name: tuple(tensor.shape) for name, tensor in converted.items()}),
        in_chans=student.in_chans,
        num_classes=len(head['head.fc.weight']) if 'head.fc.weight' in head else 0,
        attention='mhsa',
        head_dim=mixer.qkv.in_features // mixer.num_heads,
    )
    teacher.load_state_dict(converted, strict=False)
    if not teacher.num_classes:
        own = f'{report.prefix}head.'
        teacher.head = caformer_head(
            {name.removeprefix(own): t for name, t in weights.items() if name.startswith(own)}
        )
        classifier = getattr(teacher.head, 'fc', None)
        teacher.num_classes = getattr(getattr(classifier, 'fc2', classifier), 'out_features', 0)
    return teacher


def caformer_head(weights: dict[str, Tensor]) -> nn.Module:
    """The head of timm's CAFormer; nothing where there are no such weights.

    Args:
        weights: under its own names.
    """
    last = next((weights[n] for n in ('fc.fc2.weight', 'fc.weight') if n in weights), None)
    if last is None or 'norm.weight' not in weights:
        return nn.Identity()
    with torch.device('meta'):
        head = MetaFormer(
            depths=(1,) * 4,
            dims=(1, 1, 1, len(weights['norm.weight'])),
            num_classes=len(last),
            use_mlp_head='fc.fc2.weight' in weights,
        ).head
    head.load_state_dict(weights, assign=True)
    return head


def start_from(student: nn.Module, teacher: nn.Module) -> None:
    """Give a student its teacher's weights; landmarks start so that the function is kept.

    Raises:
        CheckpointError: they are not of one size.
    """
    if isinstance(student, IViTClassifier):
        student.head, student.num_classes = copy.deepcopy(teacher.head), teacher.num_classes
    theirs, own = (
        {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        for model in (teacher, student)
    )
    wrong = [
        f'{name} is {theirs.get(name, "missing")} in it, {own.get(name, "missing")} in the student'
        for name in dict.fromkeys([*own, *theirs])
        if own.get(name) != theirs.get(name) and not (is_optional(name) and name not in theirs)
    ]
    if wrong:
        size, wanted = (name_arch(read_sizes(shapes)) for shapes in (theirs, own))
        reason = f'it is of size {size}, the student of {wanted}' if size != wanted else wrong[0]
        raise CheckpointError(
            f"the student cannot start from it: {reason}; set the student's size, "
            'model.student.arch, to that of its teacher'
        )
    student.load_state_dict(teacher.state_dict(), strict=False)
    if not any(isinstance(part, DecomposedMHSA) for part in teacher.modules()):
        for module in student.modules():
            if isinstance(module, DecomposedMHSA):
                for name, value in LOCAL_START.items():
                    nn.init.constant_(getattr(module, name), value)


def relative_squares(features: Tensor, others: Tensor) -> Tensor:
    """|f - g|^2 / |g|^2 of each image, (B,), of features (B, ...)."""
    features, others = features.flatten(1).float(), others.flatten(1).float()
    return (features - others).square().sum(1) / others.square().sum(1).clamp_min(LEAST)


def divergence(logits: Tensor, others: Tensor) -> Tensor:
    """Kullback-Leibler, of what others answer from what the logits do; both (B, classes)."""
    return F.kl_div(logits.log_softmax(1), others.log_softmax(1), None, None, 'batchmean', True)


def stage_of(block: str) -> str:
    """The stage of a block, as 'stages.2' of 'stages.2.blocks.0'."""
    return block.rpartition('.')[0].removesuffix('.blocks')


@METRICS.register_module()
class DistillationMetric(BaseMetric):
    """How far a student is from its teacher on held-out images.

    Means over the images: ``error_STAGE``, |s - t| / |t| after each stage's last block; and where
    the teacher classifies, in percent, ``agreement``, how often both find the same class; where
    the images have labels, ``accuracy`` and ``teacher_accuracy``.
    """

    default_prefix = 'student'

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Take the results of a batch's samples."""
        self.results += [dict(_measured(sample)) for sample in data_samples]

    def compute_metrics(self, results: list[dict[str, float]]) -> dict[str, float]:
        values = defaultdict(list)
        for result in results:
            for name, value in result.items():
                values[name].append(value)
        return {name: fmean(found) for name, found in values.items()}


def _measured(sample: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for stage, error in sample['errors'].items():
        yield f'error_{stage}', error
    if 'predicted' in sample:
        yield 'agreement', 100.0 * (sample['predicted'] == sample['taught'])
        if 'label' in sample:
            yield 'accuracy', 100.0 * (sample['predicted'] == sample['label'])
            yield 'teacher_accuracy', 100.0 * (sample['taught'] == sample['label'])
