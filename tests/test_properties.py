"""What holds for any input, by hypothesis: sizes, batches, channels, types, architectures.

The examples are the same in every run. ``PROPERTY_EXAMPLES=500`` tries that many of each property,
chosen anew every time.
"""

import os
import re

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmivit.models import IViT
from mmivit.weights.converters import convert

ATTENTIONS = ('mhsa', 'decomposed', 'interactive', 'imhsa')
MANY = os.environ.get('PROPERTY_EXAMPLES')
# Of what a result may differ by where sums are taken in another order, relative to its largest.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}

few = settings(
    max_examples=int(MANY or 20),
    derandomize=not MANY,
    database=None,
    deadline=None,  # timing decides no test
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@st.composite
def sizes(draw):
    """Height and width: 31 to 400 of any parity, and strips up to 1:40."""
    short = draw(st.integers(31, 400))
    long = draw(
        st.integers(31, 400) | st.integers(31, 1240) if short < 40 else st.integers(31, 400)
    )
    return draw(st.permutations([short, long]))


@st.composite
def architectures(draw):
    """A name, or depths and widths; with a head width that divides."""
    if draw(st.booleans()):
        return dict(arch='nano', head_dim=draw(st.sampled_from([8, 16, 32])))
    head_dim = draw(st.sampled_from([4, 8, 12]))
    depths = draw(st.lists(st.integers(1, 2), min_size=4, max_size=4))
    # Normalising over two channels is nearly a step function: rounding alone moves its result.
    widths = draw(st.lists(st.integers(4, 24), min_size=2, max_size=2))
    widths += [
        head_dim * heads for heads in draw(st.lists(st.integers(1, 4), min_size=2, max_size=2))
    ]
    return dict(arch=dict(depths=depths, widths=widths), head_dim=head_dim)


@st.composite
def options(draw):
    """Arguments of a backbone."""
    return dict(
        **draw(architectures()),
        in_channels=draw(st.integers(1, 6)),
        attention=draw(st.sampled_from(ATTENTIONS)),
        landmarks=draw(st.integers(1, 20)),
        interaction=draw(st.sampled_from(['pre', 'post', 'both'])),
        out_indices=draw(st.sets(st.integers(0, 3), min_size=1).map(sorted)),
    )


def build(arguments, dtype=torch.float32):
    """A backbone none of whose parameters has its initial value."""
    torch.manual_seed(0)
    model = IViT(**arguments)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.to(dtype).eval()


def images(batch, arguments, size, dtype=torch.float32):
    torch.manual_seed(1)
    return torch.randn(batch, arguments['in_channels'], *size).to(dtype)


def quadratic(arguments, size):
    """Whether N x N maps would take more than a test should."""
    return arguments['attention'] == 'interactive' and size[0] * size[1] > 200 * 200


def close(one, other):
    for a, b in zip(one, other, strict=True):
        tolerance = TOLERANCE[a.dtype] * max(1.0, b.abs().max().item())
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


def expected_side(side, stage):
    """Rounded up by each downsampling; the stem's 7 x 7 kernel has a padding of 2 only."""
    side = (side + 4 - 7) // 4 + 1
    for _ in range(stage):
        side = -(-side // 2)
    return side


@few
@given(
    arguments=options(),
    size=sizes(),
    batch=st.integers(1, 3),
    dtype=st.sampled_from(list(TOLERANCE)),
)
@torch.no_grad()
def test_maps(arguments, size, batch, dtype):
    """Right shapes, contiguous, finite; the same alone and in a batch, in both memory formats."""
    if quadratic(arguments, size):
        size = [min(side, 200) for side in size]
    model, x = build(arguments, dtype), images(batch, arguments, size, dtype)
    maps = model(x)
    assert [y.shape[1] for y in maps] == model.out_channels
    for y, stage in zip(maps, arguments['out_indices'], strict=True):
        assert (y.shape[0], y.dtype) == (batch, dtype)
        assert tuple(y.shape[2:]) == tuple(expected_side(side, stage) for side in size)
        assert y.is_contiguous()
        assert y.isfinite().all()
    close(model(x.contiguous(memory_format=torch.channels_last)), maps)
    close(model(x[-1:]), [y[-1:] for y in maps])
    if model.landmarks is not None:
        fresh = IViT(**{**arguments, 'landmarks': 5}).to(dtype).eval()
        fresh.load_state_dict(model.state_dict())
        fresh.landmarks = arguments['landmarks']
        for a, b in zip(fresh(x), maps, strict=True):
            assert torch.equal(a, b)


@few
@given(arguments=options(), size=sizes(), batch=st.integers(1, 2), with_cp=st.booleans())
def test_training(arguments, size, batch, with_cp):
    """Every parameter gets a finite gradient, and training computes what inference does."""
    size = [min(side, 160) for side in size]
    model, x = build(arguments), images(batch, arguments, size)
    with torch.no_grad():
        expected = model(x)
    model.train().with_cp = with_cp
    maps = model(x)
    close(maps, expected)
    sum(y.square().mean() for y in maps).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@few
@given(
    arguments=options(),
    wanted=st.sampled_from(ATTENTIONS),
    prefix=st.sampled_from(['', 'backbone.']),
)
def test_conversion(arguments, wanted, prefix):
    """To the backbone and back loses nothing, whatever the architecture."""
    arguments['out_indices'] = [0, 1, 2, 3]
    state = build(arguments).state_dict()
    given_state = {prefix + name: tensor for name, tensor in state.items()}
    converted, report = convert(given_state)
    assert converted.keys() == state.keys()
    assert all(torch.equal(converted[name], state[name]) for name in state)
    assert not report.missing
    other, _ = convert(given_state, attention=wanted)
    back, _ = convert(other, attention=arguments['attention'], paper_start=True)
    assert all(torch.equal(tensor, state[name]) for name, tensor in back.items())
    own = re.compile(r'\.(interaction\w*|content|locality)$')  # what whole maps have not got
    assert {name for name in state if not own.search(name)} <= back.keys()
    channels = arguments['in_channels'] % 6 + 1
    adapted, _ = convert(given_state, in_channels=channels)
    model = IViT(**{**arguments, 'in_channels': channels})
    if 'interaction' not in ' '.join(report.dropped):
        model.load_state_dict(adapted)


@few
@given(size=st.tuples(st.integers(-1, 40), st.integers(-1, 40)))
def test_what_is_too_small_is_refused(size):
    model = IViT(dict(depths=[1] * 4, widths=[4] * 4), head_dim=4).eval()
    x = torch.zeros(1, 3, *(max(side, 0) for side in size))
    if min(size) < 31:
        with pytest.raises(ValueError, match='at least 31'):
            model(x)
    else:
        assert len(model(x)) == 4
