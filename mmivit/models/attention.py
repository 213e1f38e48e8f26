"""The four attentions of iMHSA's Fig. 2 (arXiv 2402.17507), one class each.

    (a) MHSA            softmax(Q K^T / sqrt d) V                        N x N, fused
    (b) DecomposedMHSA  A_Q (A_K V)                                      N x L and L x N
    (c) InteractiveMHSA I(softmax(Q K^T / sqrt d)) V                     N x N, stored
    (d) IMHSA           I_Q(A_Q) (I_K(A_K) V)                            N x L and L x N

with, per head of width d, N tokens and L landmarks (the paper's Eq. 6)

    A_Q = softmax(Q k^T / sqrt d)   N x L   "key-less",   q = avgpool2d(Q)
    A_K = softmax(q K^T / sqrt d)   L x N   "query-less", k = avgpool2d(K)

and I the cross-head interaction: an h x h mix over the head axis. The authors published neither
code nor the interaction's exact form; that it is bias-free, starts at the identity and sits after
the softmax was decided here (README, "What the paper states").

All four map channels-last tokens (B, H, W, C) to (B, H, W, C) and share the names of their
projections, so that weights move between them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmivit.models.memory import by_images, in_pieces, is_lean, recompute

INTERACTIONS = ('pre', 'post', 'both')


def pool_landmarks(x: Tensor, landmarks: int) -> Tensor:
    """Average a token grid over blocks: the values of ``adaptive_avg_pool2d``, channels last.

    :func:`average_blocks` does the work where gradients or graphs are made, because adaptive
    pooling's backward is not deterministic on CUDA and it does not export with dynamic sizes. A
    grid side shorter than ``landmarks`` is kept as it is.

    Args:
        x: tokens, (B, H, W, C).
        landmarks: the grid's side g.

    Returns:
        (B, min(g, H), min(g, W), C).
    """
    size = (min(landmarks, x.shape[1]), min(landmarks, x.shape[2]))
    if not torch.jit.is_scripting() and is_lean(x):
        return F.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), size).permute(0, 2, 3, 1)
    return average_blocks(x, size)


def average_blocks(x: Tensor, size: tuple[int, int]) -> Tensor:
    """``adaptive_avg_pool2d``, channels last, by two small averaging matrices.

    Args:
        x: (B, H, W, C).
        size: g_h and g_w, any from 1 up.

    Returns:
        (B, g_h, g_w, C).
    """
    rows = _averaging_matrix(x.shape[1], size[0], x)  # (g_h, H)
    columns = _averaging_matrix(x.shape[2], size[1], x)  # (g_w, W)
    channels = x.shape[3]
    x = columns @ x  # (g_w, W) @ (B, H, W, C) -> (B, H, g_w, C)
    x = rows @ x.flatten(2)  # (g_h, H) @ (B, H, g_w * C) -> (B, g_h, g_w * C)
    return x.reshape(x.shape[0], x.shape[1], -1, channels)  # (B, g_h, g_w, C)


def _averaging_matrix(size: int, bins: int, like: Tensor) -> Tensor:
    """(bins, size): row i averages [floor(i * size / bins), ceil((i + 1) * size / bins))."""
    i = torch.arange(bins, device=like.device).unsqueeze(1)
    j = torch.arange(size, device=like.device)
    start = i * size // bins
    stop = ((i + 1) * size + bins - 1) // bins
    inside = (j >= start) & (j < stop)
    return inside.to(like.dtype) / (stop - start).to(like.dtype)


def mix_heads(weight: Tensor, maps: Tensor) -> Tensor:
    """The cross-head interaction I: every output map is a weighted sum of all heads' maps.

    A ``bmm`` over flattened maps, because ``einsum`` and ``matmul`` copy them at batch > 1.

    Args:
        weight: (h, h), row = output head.
        maps: (B, h, rows, columns).

    Returns:
        (B, h, rows, columns).
    """
    batch, heads = maps.shape[:2]
    mixed = torch.bmm(weight.to(maps.dtype).expand(batch, heads, heads), maps.flatten(2))
    return mixed.view_as(maps)


def softmax(logits: Tensor, dim: int) -> Tensor:
    """Softmax over an axis, computed in fp32 or better, returned in the logits' dtype.

    At inference on a CPU it takes the place of the logits in memory.
    """
    if not torch.jit.is_scripting() and is_lean(logits):
        return torch.softmax(logits, dim, out=logits)  # torch computes bf16 in fp32 by itself
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return logits.softmax(dim, dtype=dtype).to(logits.dtype)


def _check_landmarks(value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f'landmarks={value!r}: expected the side of the grid, an int from 1 up')


def _check_interaction(value: str) -> None:
    if value not in INTERACTIONS:
        raise ValueError(
            f'interaction={value!r}: expected one of {INTERACTIONS}'
            " (for no interaction use attention='decomposed' or 'mhsa')"
        )


class MHSA(nn.Module):
    """(a) Multi-head self-attention, through ``scaled_dot_product_attention``.

    Also the base of the other three, which replace :meth:`attend`.

    Args:
        dim: channels C.
        num_heads: heads h; d = C / h.

    Raises:
        ValueError: C is not a multiple of h.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f'dim={dim} must be a multiple of num_heads={num_heads}')
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)  # rows q, k, v, each head-major
        self.proj = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        if torch.jit.is_scripting():
            return self._forward(x)
        return by_images(self._forward, x)

    def _forward(self, x: Tensor) -> Tensor:
        q, k, v = self._split_heads(self.qkv(x))  # (B, h, N, d) each
        y = self.attend(x, q, k, v)  # (B, h, N, d)
        # (B, h, N, d) -> (B, N, h, d) -> (B, H, W, C)
        return self.proj(y.transpose(1, 2).reshape(x.shape))

    def attend(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of all heads; x is the input (B, H, W, C), the rest (B, h, N, d)."""
        return F.scaled_dot_product_attention(q, k, v)

    def _split_heads(self, x: Tensor) -> list[Tensor]:
        """(B, H, W, m C) -> m tensors (B, h, H W, d)."""
        batch, head_dim = x.shape[0], self.proj.in_features // self.num_heads
        # (B, H, W, m C) -> (B, N, m, h, d) -> (m, B, h, N, d)
        x = x.reshape(batch, x.shape[1] * x.shape[2], -1, self.num_heads, head_dim)
        return x.permute(2, 0, 3, 1, 4).unbind(0)


class DecomposedMHSA(MHSA):
    """(b) Attention through L landmarks, A_Q (A_K V), without interaction.

    Two fused calls: neither the N x L nor the L x N map is stored.

    Args:
        landmarks: side g of the landmark grid, L = g * g; may be changed on a built module.
    """

    __jit_unused_properties__ = ('landmarks',)

    def __init__(self, dim: int, num_heads: int, landmarks: int = 7) -> None:
        super().__init__(dim, num_heads)
        self.landmarks = landmarks

    @property
    def landmarks(self) -> int:
        """Side g of the landmark grid. No parameter depends on it."""
        return self._landmarks

    @landmarks.setter
    def landmarks(self, value: int) -> None:
        _check_landmarks(value)
        self._landmarks = value

    def project_landmarks(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """q_landmarks, k_landmarks (B, h, L, d) of the tokens x (B, H, W, C).

        Averaging commutes with the projection, so the input is pooled once and L tokens are
        projected instead of pooling two projections of N.
        """
        pooled = pool_landmarks(x, self._landmarks)  # (B, g_h, g_w, C)
        channels = x.shape[-1]
        q, k = self._split_heads(F.linear(pooled, self.qkv.weight[: 2 * channels]))
        return q, k

    def attend(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q_landmarks, k_landmarks = self.project_landmarks(x)
        summary = F.scaled_dot_product_attention(q_landmarks, k, v)  # A_K V, (B, h, L, d)
        return F.scaled_dot_product_attention(q, k_landmarks, summary)  # A_Q (A_K V)


class _Interaction:
    """Mixin: where the cross-head interaction sits relative to the softmax.

    ``post`` and ``pre`` have one h x h matrix per attention map, ``both`` a second one,
    ``..._pre``. They start at the identity, which leaves the heads independent.
    """

    def _add_interaction(self, interaction: str, *names: str) -> None:
        _check_interaction(interaction)
        self.interaction_position = interaction
        for name in names:
            self.register_parameter(name, nn.Parameter(torch.eye(self.num_heads)))
            second = nn.Parameter(torch.eye(self.num_heads)) if interaction == 'both' else None
            self.register_parameter(f'{name}_pre', second)

    def _interact(self, logits: Tensor, weight: Tensor, second: Tensor | None, dim: int) -> Tensor:
        """Softmax of the logits (B, h, rows, columns) over ``dim``, with the interaction."""
        if self.interaction_position == 'pre':
            return softmax(mix_heads(weight, logits), dim)
        if second is not None:
            logits = mix_heads(second, logits)
        return mix_heads(weight, softmax(logits, dim))


class InteractiveMHSA(_Interaction, MHSA):
    """(c) Full N x N attention whose maps are mixed across heads.

    Quadratic in time and memory: for comparison, and for small grids.

    Args:
        interaction: 'post' (after the softmax), 'pre' or 'both'.
    """

    def __init__(self, dim: int, num_heads: int, interaction: str = 'post') -> None:
        super().__init__(dim, num_heads)
        self._add_interaction(interaction, 'interaction')

    def attend(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # (B, h, N, N)
        return self._interact(logits, self.interaction, self.interaction_pre, -1) @ v


class IMHSA(_Interaction, DecomposedMHSA):
    """(d) Interactive multi-head self-attention: linear in N.

    Y = I_Q(A_Q) (I_K(A_K) V), the L x d product first; cost O(2 N L h (d + h)).

    Args:
        dim: channels C.
        num_heads: heads h; d = C / h.
        landmarks: side g of the landmark grid, L = g * g; may be changed on a built module.
        interaction: 'post' (after the softmax), 'pre' or 'both'.
    """

    def __init__(
        self, dim: int, num_heads: int, landmarks: int = 7, interaction: str = 'post'
    ) -> None:
        super().__init__(dim, num_heads, landmarks)
        self._add_interaction(interaction, 'interaction_q', 'interaction_k')

    def attend(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q_landmarks, k_landmarks = self.project_landmarks(x)
        scale = q.shape[-1] ** -0.5  # applied to the landmarks, the smaller factor
        inputs = (q, k, v, q_landmarks * scale, k_landmarks * scale)
        if self.training and not torch.jit.is_scripting():
            return recompute(self._attend, *inputs)  # else four maps of N x L would be kept
        return self._attend(*inputs)

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, q_landmarks: Tensor, k_landmarks: Tensor
    ) -> Tensor:
        """Y = A_Q' (A_K' V), with both maps as (B, h, L, N): long rows suit softmax and bmm."""
        # A_K' = I_K(softmax(q K^T / sqrt d))
        logits = q_landmarks @ k.transpose(-2, -1)
        attn_k = self._interact(logits, self.interaction_k, self.interaction_k_pre, -1)
        summary = attn_k @ v  # (B, h, L, d)
        del logits, attn_k  # their memory serves the next map
        q = q.transpose(1, 2)  # (B, N, h, d)
        if torch.jit.is_scripting():
            y = self._read(q, k_landmarks, summary)
        else:
            width = self.num_heads * k_landmarks.shape[2]
            y = in_pieces(self._read, q, width, k_landmarks, summary)
        return y.transpose(1, 2)  # (B, h, N, d)

    def _read(self, q: Tensor, k_landmarks: Tensor, summary: Tensor) -> Tensor:
        """A_Q' (A_K' V) for some of the queries. (B, n, h, d) -> same."""
        # A_Q'^T = I_Q(softmax(k Q^T / sqrt d)), (B, h, L, n): the softmax is over landmarks
        logits = k_landmarks @ q.permute(0, 2, 3, 1)
        attn_q = self._interact(logits, self.interaction_q, self.interaction_q_pre, -2)
        return (attn_q.transpose(-2, -1) @ summary).transpose(1, 2)


ATTENTIONS = {
    'mhsa': MHSA,
    'decomposed': DecomposedMHSA,
    'interactive': InteractiveMHSA,
    'imhsa': IMHSA,
}


def build_attention(
    kind: str, dim: int, num_heads: int, landmarks: int = 7, interaction: str = 'post'
) -> MHSA:
    """Build one of the four by name; options that a kind does not have are checked and left out.

    Raises:
        ValueError: an argument has a value that is not allowed.
    """
    if kind not in ATTENTIONS:
        raise ValueError(f'attention={kind!r}: expected one of {tuple(ATTENTIONS)}')
    _check_landmarks(landmarks)
    _check_interaction(interaction)
    options = {}
    if issubclass(ATTENTIONS[kind], DecomposedMHSA):
        options['landmarks'] = landmarks
    if issubclass(ATTENTIONS[kind], _Interaction):
        options['interaction'] = interaction
    return ATTENTIONS[kind](dim, num_heads, **options)
