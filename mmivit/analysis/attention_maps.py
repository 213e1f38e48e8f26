"""What attention heads attend to, and how different they are, for any model with our attentions.

The effective map of a head is the N x N matrix that multiplies its values: softmax(Q K^T / sqrt d)
in (a), A_Q A_K in (b), I(softmax(Q K^T / sqrt d)) in (c), A_Q' A_K' in (d) of the paper's Fig. 2.
The module itself computes its maps, by the methods that its forward pass uses where it forms them;
here they are put together, for the queries that are asked for. Of a vision transformer's tokens the
patches are looked at, as queries and as keys; what a row lacks goes to the tokens in front.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import nan
from statistics import fmean

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmivit.models.attention import ATTENTIONS, MHSA, DecomposedMHSA, positions
from mmivit.utils.modules import in_evaluation

# Effective rank of a map below which it is called collapsed: its rows are nearly the same but for a
# factor, and the head pools the values in one way, whatever the query.
COLLAPSED = 1.1


@dataclass(frozen=True)
class HeadDiversity:
    """How alike the heads of a layer are: means over images, and over heads or pairs of heads.

    Attributes:
        layer: the attention's name in the model.
        attention: its kind.
        heads: number of heads h; with one head there are no pairs, and the similarities are nan.
        map_cosine: cosine similarity of two heads' effective maps, as vectors of N * N entries.
        output_cosine: the same of their outputs (N, d) before the projection.
        output_cka: linear CKA of their outputs, :func:`linear_cka`.
        effective_rank: of the N x N maps, :func:`effective_rank`; from 1 to N. Below
            :data:`COLLAPSED`, queries make no difference.
        collapsed: the share of the heads whose maps are below :data:`COLLAPSED`.
    """

    layer: str
    attention: str
    heads: int
    map_cosine: float
    output_cosine: float
    output_cka: float
    effective_rank: float
    collapsed: float


MEASURES = ('map_cosine', 'output_cosine', 'output_cka', 'effective_rank', 'collapsed')


def kind_of(module: MHSA) -> str:
    """The name of an attention's kind: 'mhsa', 'decomposed', 'interactive' or 'imhsa'."""
    # The last are derived from the first.
    return next(name for name, kind in reversed(ATTENTIONS.items()) if isinstance(module, kind))


@torch.no_grad()
def attention_inputs(model: nn.Module, images: Tensor) -> dict[str, tuple[MHSA, Tensor]]:
    """Every attention that a forward pass runs through, and the tokens it is given.

    The model computes in evaluation mode and is left as it was.

    Args:
        model: a backbone, a classifier, or an mmdet or mmseg model, whose backbone alone runs.
        images: what the backbone takes, (B, C, H, W).

    Returns:
        By the attention's name in the model: the module and its input, (B, H', W', C') or of a
        vision transformer (B, P + N, C').

    Raises:
        ValueError: no attention of ours ran.
    """
    found = {}
    names = {m: name for name, m in model.named_modules() if isinstance(m, MHSA)}

    def record(module: MHSA, inputs: tuple[Tensor]) -> None:
        found[names[module]] = (module, inputs[0])

    with ExitStack() as stack:
        stack.enter_context(in_evaluation(model))
        for module in names:
            stack.enter_context(module.register_forward_pre_hook(record))
        getattr(model, 'backbone', model)(images)
    if not found:
        raise ValueError(
            f'{type(model).__name__} runs no attention that can be shown: expected at least one '
            f'of {", ".join(kind.__name__ for kind in ATTENTIONS.values())}'
        )
    return found


@torch.no_grad()
def effective_map(module: MHSA, x: Tensor, queries: Sequence[int] | None = None) -> Tensor:
    """Rows of each head's effective map: the weights with which it sums the N values.

    Args:
        module: any of the four attentions.
        x: its input, (B, H, W, C), N = H * W; or (B, P + N, C).
        queries: tokens whose rows are wanted, row-major; all N if not given.

    Returns:
        (B, h, queries, N). Rows sum to 1 unless heads interact or tokens are in front.
    """
    if x.ndim == 3:
        return _effective_map_of_patches(module, x, queries)
    q, k, _, *landmarks = module.project(x)  # (B, h, N, d) and (B, h, L, d) each
    if queries is not None:
        q = q[:, :, list(queries)]
    if not landmarks:
        return module.attn(q, k)
    q_landmarks, k_landmarks = landmarks
    tokens, grid = positions(x, module.landmarks)  # (1, N, 3), (L, 3)
    if queries is not None:
        tokens = tokens[:, list(queries)]
    attn_q = module.attn_q(q, tokens, k_landmarks, grid)  # (B, h, L, queries)
    return attn_q.transpose(-2, -1) @ module.attn_k(q_landmarks, k)


def _effective_map_of_patches(module: MHSA, x: Tensor, queries: Sequence[int] | None) -> Tensor:
    """The same of (B, P + N, C): the sums of values that are one-hot are their weights."""
    q, k, v, *landmarks = module.project(x)
    tokens = x.shape[1]
    one_hot = torch.eye(tokens, dtype=v.dtype, device=v.device).expand(*v.shape[:2], -1, -1)
    prefix = module.token_grid.prefix
    maps = module.attend(q, k, one_hot, *landmarks)[:, :, prefix:, prefix:]
    return maps if queries is None else maps[:, :, list(queries)]


@torch.no_grad()
def landmark_maps(module: DecomposedMHSA, x: Tensor) -> Tensor:
    """A_K, or A_K' where heads interact: what each landmark gathers.

    Args:
        module: 'decomposed' or 'imhsa'; the others have no landmarks.
        x: its input, (B, H, W, C), N = H * W; or (B, P + N, C).

    Returns:
        (B, h, L, N).
    """
    _, k, _, q_landmarks, *_ = module.project(x)
    height, width = module.patches(x).shape[1:3]
    return module.attn_k(q_landmarks, k[:, :, -height * width :])


@torch.no_grad()
def key_less_maps(
    module: DecomposedMHSA, x: Tensor, queries: Sequence[int] | None = None
) -> dict[str, Tensor]:
    """A_Q, with which landmarks' sums tokens read, and what of it is whose: before heads interact.

    Args:
        module: 'decomposed' or 'imhsa'; the others have no landmarks.
        x: its input, (B, H, W, C), N = H * W; or (B, P + N, C).
        queries: tokens whose rows are wanted, row-major; all N if not given.

    Returns:
        (B, h, queries, L) each, rows summing to 1: 'content', softmax(content Q k^T / sqrt d),
        'locality', softmax(-locality |p_n - p_l|^2), and 'both', A_Q itself.
    """
    q, _, _, _, k_landmarks, *_ = module.project(x)
    tokens, grid = positions(module.patches(x), module.landmarks)
    q = q[:, :, -tokens.shape[1] :]
    if queries is not None:
        q, tokens = q[:, :, list(queries)], tokens[:, list(queries)]
    nowhere = torch.zeros_like(tokens), torch.zeros_like(grid)
    parts = dict(
        content=(q, nowhere[0], k_landmarks, nowhere[1]),
        locality=(torch.zeros_like(q), tokens, k_landmarks, grid),
        both=(q, tokens, k_landmarks, grid),
    )
    # Of the attention without interaction, whichever the module has.
    return {
        name: DecomposedMHSA.attn_q(module, *part).transpose(-2, -1) for name, part in parts.items()
    }


@torch.no_grad()
def head_outputs(module: MHSA, x: Tensor) -> Tensor:
    """What each head returns before the projection, (B, h, tokens, d), for an attention's input."""
    seen = []
    hook = module.proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        module(x)
    finally:
        hook.remove()
    # (B, H, W, C) or (B, P + N, C) -> (B, tokens, h, d) -> (B, h, tokens, d)
    return seen[0].flatten(1, -2).unflatten(2, (module.num_heads, -1)).transpose(1, 2)


def head_diversity(model: nn.Module, images: Iterable[Tensor]) -> list[HeadDiversity]:
    """How alike the heads of every attention of a model are, one record per layer.

    Whole maps are formed and decomposed, one image and layer at a time: memory grows with N^2 and
    time with N^3, a second or so for the 784 tokens of stage 3 at 448 x 448.

    Args:
        model: as for :func:`attention_inputs`.
        images: what the backbone takes, (C, H, W) each, of any sizes.

    Raises:
        ValueError: no attention of ours ran, or there are no images.
    """
    measured: dict[str, list[HeadDiversity]] = {}
    for image in images:
        for name, (module, x) in attention_inputs(model, image.unsqueeze(0)).items():
            measured.setdefault(name, []).append(layer_diversity(name, module, x))
    if not measured:
        raise ValueError('head_diversity: no images; expected at least one')
    return [
        HeadDiversity(
            name,
            layers[0].attention,
            layers[0].heads,
            *(fmean(getattr(layer, measure) for layer in layers) for measure in MEASURES),
        )
        for name, layers in measured.items()
    ]


def layer_diversity(
    name: str, module: MHSA, x: Tensor, queries: Sequence[int] | None = None
) -> HeadDiversity:
    """How alike the heads of one attention are, on one image.

    Args:
        name: the attention's.
        module: any of the four attentions.
        x: its input, (1, H, W, C), N = H * W; or (1, P + N, C).
        queries: rows of the maps that are looked at, row-major; all N if not given. Some are
            enough to tell maps that have collapsed, but ranks are bounded by their number.
    """
    maps = effective_map(module, x, queries)[0].double()  # (h, N, N)
    outputs = head_outputs(module, x)[0].double()  # (h, N, d)
    ranks = effective_rank(maps)
    return HeadDiversity(
        name,
        kind_of(module),
        module.num_heads,
        _mean_of_pairs(cosine_similarity(maps)),
        _mean_of_pairs(cosine_similarity(outputs)),
        _mean_of_pairs(linear_cka(outputs)),
        ranks.mean().item(),
        (ranks < COLLAPSED).double().mean().item(),
    )


def cosine_similarity(features: Tensor) -> Tensor:
    """Cosine similarity of every pair of heads, (h, h), of anything (h, ...)."""
    flat = F.normalize(features.flatten(1), dim=1)
    return flat @ flat.T


def linear_cka(features: Tensor) -> Tensor:
    """Linear centred kernel alignment of every pair of heads (Kornblith et al. 2019, section 3).

    |Y^T X|^2 / (|X^T X| |Y^T Y|) in Frobenius norms, columns centred over tokens. From 0 to 1;
    unlike the cosine it sees through rotations of a head's channels. 0 for constant outputs.

    Args:
        features: outputs of the heads, (h, N, d).

    Returns:
        (h, h).
    """
    heads, _, width = features.shape
    centred = features - features.mean(1, keepdim=True)
    columns = centred.transpose(0, 1).flatten(1)  # (h, N, d) -> (N, h, d) -> (N, h d)
    products = (columns.T @ columns).reshape(heads, width, heads, width)
    squares = products.square().sum((1, 3))  # |X_i^T X_j|^2, (h, h)
    norms = squares.diagonal().sqrt()
    tiny = torch.finfo(squares.dtype).tiny
    return squares / (norms.unsqueeze(1) * norms).clamp_min(tiny)


def effective_rank(maps: Tensor) -> Tensor:
    """The exponential of the entropy of the normalised singular values (Roy & Vetterli 2007).

    1 for a matrix of rank one, N for N equal singular values; no threshold is involved.

    Args:
        maps: (..., M, N).

    Returns:
        (...), in fp64.
    """
    values = torch.linalg.svdvals(maps.double())
    shares = values / values.sum(-1, keepdim=True)
    return torch.special.entr(shares).sum(-1).exp()


def _mean_of_pairs(matrix: Tensor) -> float:
    """Mean of a matrix (h, h) off its diagonal; nan for h = 1."""
    heads = len(matrix)
    return ((matrix.sum() - matrix.trace()) / (heads * (heads - 1))).item() if heads > 1 else nan
