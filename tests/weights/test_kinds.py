"""The contract of a kind of weights, for every kind; and what is no kind."""

import re

import pytest
import timm
import torch

from mmivit.converters import SOURCES, convert, recognise
from mmivit.errors import CheckpointError
from mmivit.models import IViT
from mmivit.models.attention import ATTENTIONS
from tests.weights.states import equal, one_of_each

STATES = one_of_each()
TRAINED_WITH = {
    'caformer': 'mhsa',
    'metaformer': 'mhsa',
    'ivit-imhsa': 'imhsa',
    'ivit-interactive': 'interactive',
    'ivit-mhsa': 'mhsa',
    'ivit-decomposed': 'decomposed',
    'openmmlab-imhsa': 'imhsa',
    'openmmlab-interactive': 'interactive',
    'openmmlab-mhsa': 'mhsa',
    'openmmlab-decomposed': 'decomposed',
}


def test_every_kind_is_here():
    assert {name.partition('-')[0] for name in STATES} == set(SOURCES)
    assert STATES.keys() == TRAINED_WITH.keys()
    for name, kind in SOURCES.items():
        assert kind.name == name
        assert kind.attention in (None, *ATTENTIONS)


@pytest.mark.parametrize('name', STATES)
def test_a_kind(name):
    source, state = name.partition('-')[0], STATES[name]
    # By its names it is told from all others.
    assert [kind.name for kind in SOURCES.values() if kind.matches(state)] == [source]
    assert recognise(state) == source
    # It converts, asked for by name or not.
    converted, report = convert(state)
    assert (report.source, report.arch) == (source, 'nano')
    named, _ = convert(state, source)
    assert named.keys() == converted.keys()
    kind = SOURCES[source]
    model = IViT('nano', attention=kind.attention or TRAINED_WITH[name])
    assert not model.load_state_dict(converted, strict=False).unexpected_keys
    # It says what it was trained with.
    renamed = {kind.rename(key): tensor for key, tensor in state.items()}
    renamed.pop(None, None)
    assert kind.trained_with(renamed) == TRAINED_WITH[name]
    # Taken for another it is refused, in one line that names both.
    for other in SOURCES.keys() - {source}:
        with pytest.raises(CheckpointError, match=f"no '{other}'.*'{source}'") as error:
            convert(state, other)
        assert str(error.value).isprintable()


def test_a_name_of_no_kind_is_refused():
    with pytest.raises(ValueError, match=r"source='swin': expected one of .*'ivit'") as error:
        convert(STATES['caformer'], 'swin')
    assert str(error.value).isprintable()


def test_what_is_like_no_kind_is_taken_for_what_the_caller_says():
    state = {n: t for n, t in STATES['ivit-imhsa'].items() if not re.match(r'stages\.0\.', n)}
    with pytest.raises(CheckpointError, match='it seems to be'):
        convert(state)
    with pytest.raises(CheckpointError, match='incomplete'):
        convert(state, 'ivit', 'nano')


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('resnet18', 'a ResNet'),
        ('swin_tiny_patch4_window7_224', 'a Swin'),
        ('convnext_atto', 'a ConvNeXt'),
        ('pvt_v2_b0', 'a PVT'),
        ('vit_tiny_patch16_224', 'plain vision transformer'),
        ('convformer_s18', 'another MetaFormer'),
        ('poolformerv2_s12', 'another MetaFormer'),
    ],
)
def test_foreign_weights_are_named(name, message):
    with torch.device('meta'):
        state = timm.create_model(name).state_dict()
    with pytest.raises(CheckpointError, match=message):
        convert(state)


def test_the_refusal_says_what_converts():
    with pytest.raises(CheckpointError) as error:
        convert({'a': torch.zeros(1)})
    for kind in SOURCES.values():
        assert kind.what in str(error.value)


PREFIXES = {  # as they are in the file: as the converter reports them
    'teacher.': 'teacher.',
    'student.': 'student.',
    'model.': 'model.',
    'net.': 'net.',
    'encoder.': 'encoder.',
    'module.module.': 'module.module.',
    'backbone._orig_mod.': 'backbone._orig_mod.',
    'detector.backbone.': 'detector.',
}


@pytest.mark.parametrize('name', ['ivit-imhsa', 'caformer', 'metaformer'])
@pytest.mark.parametrize('prefix', PREFIXES)
def test_one_prefix_that_explains_all_is_taken_off(prefix, name):
    bare, _ = convert(STATES[name])
    state = {f'{prefix}{key}': tensor for key, tensor in STATES[name].items()}
    state |= {'head.weight': torch.ones(2), 'n_averaged': torch.tensor(3)}
    converted, report = convert(state)
    assert equal(converted, bare)
    assert {'head.weight', 'n_averaged'} <= set(report.dropped)
    if name == 'ivit-imhsa':
        assert f'under {PREFIXES[prefix]} ->' in report.table()


def test_of_two_models_one_is_asked_for():
    own = STATES['openmmlab-imhsa']
    state = {f'{of}.{key}': tensor for of in ('student', 'teacher') for key, tensor in own.items()}
    message = r"several models, .* student\., teacher\.: leave out .*drop=\['student\.\*'\]"
    with pytest.raises(CheckpointError, match=message):
        convert(state)
    converted, _ = convert(state, drop=['student.*'])
    assert equal(converted, convert(own)[0])
    # Names that stand as a detector's are its own, whatever stands beside them.
    assert equal(convert({**state, **own})[0], converted)


def test_many_places_are_not_all_looked_at():
    state = {f'{i}.{key}': torch.zeros(1) for i in range(20_000) for key in ('stem.conv.weight',)}
    with pytest.raises(CheckpointError, match='of an unknown model'):
        convert(state)
