"""The four attentions against a naive loop written from the paper's equations."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from mmivit.analysis.benchmark import saved_bytes
from mmivit.models import IMHSA, DecomposedMHSA, InteractiveMHSA, build_attention
from mmivit.models.attention import ATTENTIONS, INTERACTIONS, exactly, pool_landmarks

KINDS = tuple(ATTENTIONS)
LINEAR = ('decomposed', 'imhsa')
INTERACTING = ('interactive', 'imhsa')
SIZES = ((1, 1), (2, 3), (7, 7), (8, 9), (14, 14), (25, 11))


def make(kind, dim=24, heads=3, seed=0, **options):
    """A module in fp64 whose interaction, content and locality are far from their start."""
    torch.manual_seed(seed)
    module = build_attention(kind, dim, heads, **options).double()
    for name, parameter in module.named_parameters():
        if 'interaction' in name:
            parameter.data.normal_()
        elif name in ('content', 'locality'):
            parameter.data.uniform_(-0.5, 2)
    return module


def naive(module, x, interaction='post', landmarks=7):
    """Fig. 2 (a)-(d), head by head and row by row, from the module's parameters alone."""
    params = dict(module.named_parameters())
    batch, height, width, dim = x.shape
    heads = module.num_heads
    d = dim // heads
    tokens = height * width
    linear = 'Decomposed' in type(module).__name__ or type(module) is IMHSA

    def mix(maps, name):
        if name not in params:
            return maps
        return [sum(params[name][i, j] * maps[j] for j in range(heads)) for i in range(heads)]

    def attend(logits, name):
        if interaction == 'both':
            logits = mix(logits, f'{name}_pre')
        if interaction == 'pre':
            logits = mix(logits, name)
        maps = [
            torch.stack([row.exp() / row.exp().sum() for row in head_logits])
            for head_logits in logits
        ]
        return maps if interaction == 'pre' else mix(maps, name)

    def pooled(tensor):
        grid = tensor.reshape(height, width, dim).permute(2, 0, 1)
        size = (min(landmarks, height), min(landmarks, width))
        return F.adaptive_avg_pool2d(grid, size).flatten(1).T

    def logits(left, right):
        return [left[:, s] @ right[:, s].T / math.sqrt(d) for s in head]

    def squared_distances():
        """Of every token from every landmark, in units of the landmark grid."""
        g_h, g_w = min(landmarks, height), min(landmarks, width)
        points = [
            ((i + 0.5) * g_h / height - 0.5, (j + 0.5) * g_w / width - 0.5)
            for i in range(height)
            for j in range(width)
        ]
        grid = [(a, b) for a in range(g_h) for b in range(g_w)]
        rows = [[(y - a) ** 2 + (x - b) ** 2 for a, b in grid] for y, x in points]
        return torch.tensor(rows, dtype=torch.float64)

    head = [slice(i * d, (i + 1) * d) for i in range(heads)]
    out = torch.empty_like(x)
    for b in range(batch):
        flat = x[b].reshape(tokens, dim)
        q, k, v = (flat @ part.T for part in params['qkv.weight'].chunk(3))
        if linear:
            content, locality = params['content'], params['locality']
            near = [
                content[i] * part - locality[i] * squared_distances()
                for i, part in enumerate(logits(q, pooled(k)))
            ]
            attn_q = attend(near, 'interaction_q')
            attn_k = attend(logits(pooled(q), k), 'interaction_k')
            # The N x N map, formed here on purpose: the other association of the product.
            maps = [a @ b for a, b in zip(attn_q, attn_k)]
        else:
            maps = attend(logits(q, k), 'interaction')
        y = torch.cat([maps[i] @ v[:, head[i]] for i in range(heads)], dim=1)
        out[b] = (y @ params['proj.weight'].T).reshape(height, width, dim)
    return out


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('kind', KINDS)
def test_equals_naive_loop(kind, size):
    module = make(kind)
    x = torch.randn(2, *size, 24, dtype=torch.float64)
    torch.testing.assert_close(module(x), naive(module, x), rtol=0, atol=1e-10)
    expected = naive(module, x).float()
    torch.testing.assert_close(module.float()(x.float()), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('interaction', ['pre', 'post', 'both'])
@pytest.mark.parametrize('kind', INTERACTING)
def test_interaction_positions(kind, interaction):
    module = make(kind, interaction=interaction)
    x = torch.randn(2, 9, 8, 24, dtype=torch.float64)
    expected = naive(module, x, interaction)
    torch.testing.assert_close(module(x), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize('landmarks', [1, 3, 7, 50])
@pytest.mark.parametrize('kind', LINEAR)
def test_landmarks_can_change_on_a_built_module(kind, landmarks):
    module = make(kind)
    names = {name: tuple(p.shape) for name, p in module.named_parameters()}
    module.landmarks = landmarks
    x = torch.randn(1, 9, 12, 24, dtype=torch.float64)
    torch.testing.assert_close(module(x), naive(module, x, landmarks=landmarks), rtol=0, atol=1e-10)
    assert names == {name: tuple(p.shape) for name, p in module.named_parameters()}


@pytest.mark.parametrize('kind', KINDS)
def test_gradients(kind):
    module = make(kind, dim=4, heads=2, **({'landmarks': 2} if kind in LINEAR else {}))
    x = torch.randn(1, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    parameters = tuple(module.parameters())
    assert torch.autograd.gradcheck(lambda x, *_: module(x), (x, *parameters))


def test_identity_interaction_is_decomposed():
    imhsa = IMHSA(64, 4).double()
    decomposed = DecomposedMHSA(64, 4).double()
    missing = decomposed.load_state_dict(imhsa.state_dict(), strict=False)
    assert not missing.missing_keys
    x = torch.randn(2, 20, 13, 64, dtype=torch.float64)
    torch.testing.assert_close(imhsa(x), decomposed(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize('kind', INTERACTING)
def test_interaction_starts_at_the_identity(kind):
    for name, parameter in build_attention(kind, 32, 4).named_parameters():
        if 'interaction' in name:
            assert torch.equal(parameter, torch.eye(4))


def test_parameter_names_and_shapes():
    shapes = {
        kind: {name: tuple(p.shape) for name, p in build_attention(kind, 32, 4).named_parameters()}
        for kind in KINDS
    }
    projections = {'qkv.weight': (96, 32), 'proj.weight': (32, 32)}
    near = {'content': (4,), 'locality': (4,)}
    assert shapes['mhsa'] == projections
    assert shapes['decomposed'] == {**projections, **near}
    assert shapes['interactive'] == {**projections, 'interaction': (4, 4)}
    assert shapes['imhsa'] == {
        **projections,
        **near,
        'interaction_q': (4, 4),
        'interaction_k': (4, 4),
    }


@pytest.mark.parametrize('kind', LINEAR)
def test_at_the_start_the_map_is_the_papers(kind):
    module, x = build_attention(kind, 24, 3), torch.randn(2, 20, 13, 24)
    assert module.content.tolist() == [1] * 3
    assert module.locality.tolist() == [0] * 3
    q, k, v, q_landmarks, k_landmarks = module.project(x)
    fused = F.scaled_dot_product_attention
    y = fused(q, k_landmarks, fused(q_landmarks, k, v))
    torch.testing.assert_close(module(x), module.merge_heads(y, x), rtol=0, atol=1e-6)


@pytest.mark.parametrize('kind', LINEAR)
def test_local_landmarks_with_one_for_each_token_are_mhsa(kind):
    """A_Q is then the identity nearly, and A_K is MHSA's own map."""
    module, x = (
        build_attention(kind, 24, 3, landmarks=8).double(),
        torch.randn(2, 8, 8, 24).double(),
    )
    module.content.data.zero_()
    module.locality.data.fill_(40)
    mhsa = build_attention('mhsa', 24, 3).double()
    mhsa.load_state_dict(module.state_dict(), strict=False)
    torch.testing.assert_close(module(x), mhsa(x), rtol=0, atol=1e-10)


@pytest.mark.parametrize('kind', LINEAR)
def test_a_state_dict_from_before_means_the_papers_map(kind):
    module = make(kind)
    before = {n: t for n, t in module.state_dict().items() if n not in ('content', 'locality')}
    module.load_state_dict(before)
    assert module.content.tolist() == [1] * 3
    assert module.locality.tolist() == [0] * 3


@pytest.mark.parametrize('kind', LINEAR)
def test_positions_are_exact_under_autocast(kind):
    """At 67,200 tokens, where those of neighbours differ by a thirtieth."""
    module, x = build_attention(kind, 16, 2).eval(), torch.randn(1, 200, 336, 16)
    module.content.data.zero_()
    module.locality.data.fill_(2)
    with torch.no_grad():
        expected = module(x)
        with torch.autocast('cpu', torch.bfloat16):
            found = module(x)
    assert (found.float() - expected).norm() < 1e-2 * expected.norm()


@pytest.mark.parametrize('device', ['cpu', 'meta', 'mps'])
def test_devices_without_autocast_need_none(device):
    """torch knows none for mps up to 2.4, nor for meta; either raises."""
    with exactly(SimpleNamespace(device=torch.device(device))):
        pass


@pytest.mark.parametrize('kind', LINEAR)
def test_constant_input_gives_the_same_output_at_any_resolution(kind):
    """The maps' rows sum to one whatever N is, so only the content counts, not the resolution."""
    module = make(kind)
    token = torch.randn(24, dtype=torch.float64)
    outputs = [module(token.expand(1, *size, 24))[0, 0, 0] for size in ((7, 7), (31, 18), (3, 50))]
    torch.testing.assert_close(outputs[0], outputs[1])
    torch.testing.assert_close(outputs[0], outputs[2])


@pytest.mark.parametrize('size', [(31, 18), (7, 7), (5, 40), (50, 84), (1, 1)])
@pytest.mark.parametrize('landmarks', [1, 4, 7, 14])
def test_landmarks_equal_adaptive_average_pooling(size, landmarks):
    x = torch.randn(2, *size, 8)
    grid = (min(landmarks, size[0]), min(landmarks, size[1]))
    expected = F.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), grid).permute(0, 2, 3, 1)
    torch.testing.assert_close(pool_landmarks(x, landmarks), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize('device', ['cpu', pytest.param('cuda', marks=pytest.mark.gpu)])
def test_backward_is_deterministic(device):
    module = make('imhsa').float().to(device)
    x = torch.randn(2, 25, 18, 24, device=device)
    gradients = []
    torch.use_deterministic_algorithms(True)
    try:
        for _ in range(2):
            module.zero_grad()
            module(x).square().sum().backward()
            gradients.append([p.grad.clone() for p in module.parameters()])
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(*gradients))


class LargestTensor(TorchDispatchMode):
    """Records the most elements any operator's output has."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize('kind', KINDS)
def test_no_tensor_grows_with_the_square_of_the_tokens(kind):
    module = build_attention(kind, 32, 2)
    largest = []
    for side in (24, 48):
        with LargestTensor() as mode:
            module(torch.randn(1, side, side, 32, requires_grad=True)).sum().backward()
        largest.append(mode.elements)
    tokens = 48 * 48
    if kind == 'interactive':
        assert largest[1] >= 2 * tokens**2  # the check sees an N x N map where there is one
    else:
        assert largest[1] == 4 * largest[0] < tokens**2


@pytest.mark.parametrize('kind', KINDS)
def test_bf16_autocast_is_close_to_fp32(kind):
    module = make(kind).float()
    x = torch.randn(2, 16, 16, 24)
    expected = module(x)
    with torch.autocast('cpu', torch.bfloat16):
        y = module(x)
    assert (y.float() - expected).norm() < 2e-2 * expected.norm()


class SoftmaxTypes(TorchDispatchMode):
    """Records the type in which every softmax is computed."""

    def __init__(self):
        super().__init__()
        self.types = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._softmax.default:
            self.types.append(result.dtype)
        return result


@pytest.mark.parametrize('kind', INTERACTING)
def test_softmax_is_computed_in_fp32_under_autocast(kind):
    module = make(kind).float()
    with torch.autocast('cpu', torch.bfloat16), SoftmaxTypes() as mode:
        y = module(torch.randn(1, 8, 8, 24))
    assert y.dtype == torch.bfloat16
    assert mode.types == [torch.float32] * (2 if kind == 'imhsa' else 1)


@pytest.mark.parametrize(
    ('build', 'named'),
    [
        (lambda: build_attention('softmax', 32, 4), 'imhsa'),
        (lambda: IMHSA(32, 5), 'num_heads=5'),
        (lambda: IMHSA(32, 4, landmarks=0), 'landmarks=0'),
        (lambda: IMHSA(32, 4, landmarks=7.5), 'landmarks=7.5'),
        (lambda: IMHSA(32, 4, interaction='none'), "'both'"),
        (lambda: InteractiveMHSA(32, 4, interaction='after'), "'post'"),
    ],
)
def test_wrong_arguments_name_the_allowed_values(build, named):
    with pytest.raises(ValueError, match=named):
        build()


@pytest.mark.parametrize('kind', ['decomposed', 'imhsa'])
def test_the_core_keeps_no_map_for_the_backward_pass(kind):
    """Of N = 1,024 tokens only q, k and v are kept, and what is as small as the landmarks."""
    module = build_attention(kind, 64, 2)
    x = torch.randn(2, 32, 32, 64)
    tokens = x.numel() * x.element_size()
    saved = saved_bytes(lambda: module(x), [x, *module.parameters()]) - tokens  # proj's input
    # The fused kernels of `decomposed` keep queries and output wider by the positions, and sums.
    assert saved <= (3.3 if kind == 'imhsa' else 6) * tokens


@pytest.mark.parametrize('interaction', INTERACTIONS)
@pytest.mark.parametrize('kind', KINDS)
def test_inference_without_gradients_computes_the_same(kind, interaction, monkeypatch):
    """In place, in pieces, with the library's pooling; and nothing given is written to."""
    module, x = make(kind, interaction=interaction).eval(), torch.randn(2, 9, 11, 24).double()
    expected, before = module(x), x.clone()
    for piece in (2**20, 2 * 3 * 49 * 10):
        monkeypatch.setattr('mmivit.models.memory.PIECE', piece)
        with torch.no_grad():
            torch.testing.assert_close(module(x), expected, rtol=0, atol=1e-12)
    assert torch.equal(x, before)


@pytest.mark.parametrize('size', [(8, 9), (40, 30)])
@pytest.mark.parametrize('kind', LINEAR)
def test_landmarks_are_the_averages_of_queries_and_keys(kind, size):
    """Whether few tokens are averaged after the projection, or many before it."""
    module = make(kind)
    q, k, _, q_landmarks, k_landmarks = module.project(torch.randn(2, *size, 24).double())
    for tokens, landmarks in ((q, q_landmarks), (k, k_landmarks)):
        grid = tokens.transpose(2, 3).reshape(2 * 3, 8, *size)  # (B h, d, H, W)
        expected = F.adaptive_avg_pool2d(grid, 7).reshape(2, 3, 8, 49).transpose(2, 3)
        torch.testing.assert_close(landmarks, expected)


def test_training_and_evaluation_compute_the_same():
    module, x = build_attention('imhsa', 32, 4), torch.randn(2, 9, 11, 32)
    torch.testing.assert_close(module.train()(x), module.eval()(x), rtol=0, atol=0)
