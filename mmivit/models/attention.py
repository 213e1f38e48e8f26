"""The four attentions of iMHSA's Fig. 2 (arXiv 2402.17507), one class each.

    (a) MHSA            softmax(Q K^T / sqrt d) V                        N x N, fused
    (b) DecomposedMHSA  A_Q (A_K V)                                      N x L and L x N, fused
    (c) InteractiveMHSA I(softmax(Q K^T / sqrt d)) V                     N x N, stored
    (d) IMHSA           I_Q(A_Q) (I_K(A_K) V)                            N x L and L x N

with, per head of width d, N tokens and L landmarks (the paper's Eq. 6)

    A_Q = softmax(Q k^T / sqrt d)   N x L   "key-less",   q = avgpool2d(Q)
    A_K = softmax(q K^T / sqrt d)   L x N   "query-less", k = avgpool2d(K)

and I the cross-head interaction: an h x h mix over the head axis. The authors published neither
code nor the interaction's exact form; that it is bias-free, starts at the identity and sits after
the softmax was decided here (README, "What the paper states"). So were two numbers per head,

    A_Q = softmax(content Q k^T / sqrt d - locality |p_n - p_l|^2)

with p the positions of tokens and landmarks in units of the landmark grid. At their start, (1, 0),
the map is the paper's. At (0, 2) every token reads what the landmark of its own block gathers,
which is MHSA's own map for that block's mean query: weights trained with (a) keep their function.

All four map channels-last tokens (B, H, W, C) to (B, H, W, C) and share the names of their
projections, so that weights move between them. How their memory is spent: memory.py.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmivit.models.memory import by_images, in_pieces, is_eager, is_lean, recomputed

INTERACTIONS = ('pre', 'post', 'both')
FEW = 16  # tokens to a landmark, up to which averaging what they were projected to is cheaper
# Of landmarks that take the place of whole maps: every token reads what its own block's gathers.
LOCAL_START = dict(content=0.0, locality=2.0)


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
    if is_lean(x):
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
    return x.unflatten(2, (size[1], channels))  # (B, g_h, g_w, C)


def _averaging_matrix(size: int, bins: int, like: Tensor) -> Tensor:
    """(bins, size): row i averages [floor(i * size / bins), ceil((i + 1) * size / bins))."""
    i = torch.arange(bins, device=like.device).unsqueeze(1)
    j = torch.arange(size, device=like.device)
    start = i * size // bins
    stop = ((i + 1) * size + bins - 1) // bins
    inside = (j >= start) & (j < stop)
    return inside.to(like.dtype) / (stop - start).to(like.dtype)


def positions(x: Tensor, landmarks: int) -> tuple[Tensor, Tensor]:
    """Where tokens and landmarks lie, as two factors: their product is |p_n|^2 - |p_n - p_l|^2.

    In units of the landmark grid: row i of H is at (i + 1/2) g / H - 1/2, so that landmark l, the
    mean of a block, is at l. |p_n|^2 is the same for all landmarks and cancels in a softmax.

    Args:
        x: tokens, (B, H, W, C).
        landmarks: the grid's side g; a side shorter than that has a landmark for each token.

    Returns:
        (y_n, x_n, 1) of the tokens, (1, N, 3), and (2 y_l, 2 x_l, -|p_l|^2) of the landmarks,
        (L, 3); fp32 or better.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    sides = [(size, min(landmarks, size)) for size in x.shape[1:3]]
    tokens = [
        (torch.arange(size, device=x.device, dtype=dtype) + 0.5) * (g / size) - 0.5
        for size, g in sides
    ]
    grid = [torch.arange(g, device=x.device, dtype=dtype) for _, g in sides]
    of_tokens, of_landmarks = (
        torch.stack(torch.meshgrid(*axes, indexing='ij'), -1).flatten(0, 1)
        for axes in (tokens, grid)
    )  # (N, 2), (L, 2)
    squares = of_landmarks.square().sum(1, keepdim=True)  # |p_l|^2
    return (
        F.pad(of_tokens, (0, 1), value=1.0).unsqueeze(0),
        torch.cat([2 * of_landmarks, -squares], 1),
    )


def _has_autocast(device: str) -> bool:
    try:
        torch.autocast(device, enabled=False)
    except RuntimeError:
        return False
    return True


WITHOUT_AUTOCAST = tuple(d for d in ('meta', 'mps') if not _has_autocast(d))  # mps: up to torch 2.4


def exactly(x: Tensor) -> AbstractContextManager:
    """Without autocast: eight bits of mantissa don't hold a position."""
    if x.device.type in WITHOUT_AUTOCAST:
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)


def add_(logits: Tensor, scale: Tensor, closeness: Tensor) -> Tensor:
    """logits + scale * closeness, in fp32 or better.

    It takes the place of the logits in memory, of which no gradient needs the values.

    Args:
        logits: (B, h, L, N).
        scale: (h, 1, 1).
        closeness: (1, L, N).
    """
    if is_eager(logits) and logits.dtype == closeness.dtype:
        return logits.addcmul_(scale, closeness)
    return torch.addcmul(logits.to(closeness.dtype), scale, closeness)


def mix_heads(weight: Tensor | None, maps: Tensor) -> Tensor:
    """The cross-head interaction I: every output map is a weighted sum of all heads' maps.

    A ``bmm`` over flattened maps, because ``einsum`` and ``matmul`` copy them at batch > 1.

    Args:
        weight: (h, h), row = output head; None leaves the heads alone.
        maps: (B, h, rows, columns).

    Returns:
        (B, h, rows, columns).
    """
    if weight is None:
        return maps
    batch, heads = maps.shape[:2]
    mixed = torch.bmm(weight.to(maps.dtype).expand(batch, heads, heads), maps.flatten(2))
    return mixed.view_as(maps)


def softmax_(logits: Tensor, dim: int) -> Tensor:
    """Softmax over an axis, computed in fp32 or better, returned in the logits' dtype.

    At inference on a CPU it takes the place of the logits in memory.
    """
    if is_lean(logits):
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

    Also the base of the other three, which sum the values in other ways. The fused kernels, here
    and in (b), have first derivatives alone: take second and forward-mode ones within
    ``torch.nn.attention.sdpa_kernel(SDPBackend.MATH)``.

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

    @by_images
    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        q, k, v = self.project(x)
        return self.merge_heads(F.scaled_dot_product_attention(q, k, v), x)

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        """Q, K and V, (B, h, N, d) each, of tokens (B, H, W, C)."""
        return self.split_heads(self.qkv(x))

    def split_heads(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, H, W, 3 C) -> three of (B, h, N, d)."""
        batch, height, width, channels = qkv.shape
        shape = (batch, height * width, 3, self.num_heads, channels // (3 * self.num_heads))
        # (B, H, W, 3 C) -> (B, N, 3, h, d) -> (3, B, h, N, d)
        return qkv.reshape(shape).permute(2, 0, 3, 1, 4).unbind(0)

    def merge_heads(self, y: Tensor, x: Tensor) -> Tensor:
        """The heads' outputs (B, h, N, d), concatenated and projected, in the shape of x."""
        # (B, h, N, d) -> (B, N, h, d) -> (B, H, W, C)
        return self.proj(y.transpose(1, 2).reshape(x.shape))

    def _holds_projection(self, state_dict: dict, prefix: str) -> bool:
        """Whether a state dict is of the attention, and not of an adapter within it alone.

        Adapters put a layer around the projection, and another name before the weight's.
        """
        dim = self.proj.in_features
        return any(
            key.startswith(f'{prefix}qkv.') and getattr(tensor, 'shape', ()) == (3 * dim, dim)
            for key, tensor in state_dict.items()
        )

    def attn(self, q: Tensor, k: Tensor) -> Tensor:
        """A = softmax(Q K^T / sqrt d), (B, h, M, N), of M queries and N keys; for looking at."""
        return softmax_((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1), -1)

    def sibling(self, kind: str) -> MHSA:
        """A new attention of another kind with layers of the same sizes; for looking at."""
        landmarks = getattr(self, 'landmarks', 7)
        return build_attention(kind, self.proj.in_features, self.num_heads, landmarks)

    def patches(self, x: Tensor) -> Tensor:
        """Those of the tokens that lie on a grid, (B, H, W, C): here all."""
        return x


class DecomposedMHSA(MHSA):
    """(b) Attention through L landmarks, A_Q (A_K V), without interaction.

    Two fused calls: neither the N x L nor the L x N map is stored.

    Args:
        landmarks: side g of the landmark grid, L = g * g; may be changed on a built module.
    """

    # What their absence from a state dict means: files from before have neither.
    IMPLIED = dict(content=1.0, locality=0.0)

    def __init__(self, dim: int, num_heads: int, landmarks: int = 7) -> None:
        super().__init__(dim, num_heads)
        self.landmarks = landmarks
        self.content = nn.Parameter(torch.ones(num_heads))
        self.locality = nn.Parameter(torch.zeros(num_heads))

    @property
    def landmarks(self) -> int:
        """Side g of the landmark grid. No parameter depends on it."""
        return self._landmarks

    @landmarks.setter
    def landmarks(self, value: int) -> None:
        _check_landmarks(value)
        self._landmarks = value

    @by_images
    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        q, k, v, q_landmarks, k_landmarks = self.project(x)
        summary = F.scaled_dot_product_attention(q_landmarks, k, v)  # A_K V, (B, h, L, d)
        tokens, grid = positions(x, self._landmarks)
        return self.merge_heads(self.read(q, tokens, k_landmarks, grid, summary), x)

    def read(
        self, q: Tensor, tokens: Tensor, k_landmarks: Tensor, grid: Tensor, summary: Tensor
    ) -> Tensor:
        """A_Q S, (B, h, N, d), for the landmarks' sums S, (B, h, L, d).

        The factors of the locality are three more channels of q and k.
        """
        width, dtype = q.shape[3], tokens.dtype
        # The kernels want queries, keys and values of one width, a multiple of eight.
        extra = 3 + -(width + 3) % 8
        content, locality = (a.view(-1, 1, 1) for a in (self.content, self.locality))  # (h, 1, 1)
        grid = locality * grid * width**0.5  # (h, L, 3); the call divides by it
        with exactly(q):
            q, k = (
                torch.cat([a.to(dtype), F.pad(b, (0, extra - 3)).expand(*a.shape[:3], extra)], 3)
                for a, b in ((q, tokens), (content * k_landmarks, grid))
            )  # (B, h, N, d + extra), (B, h, L, d + extra)
            values = F.pad(summary.to(dtype), (0, extra))
            y = F.scaled_dot_product_attention(q, k, values, scale=width**-0.5)
        return y[..., :width].to(summary.dtype)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: object) -> None:
        if self._holds_projection(state_dict, prefix):
            for name, value in self.IMPLIED.items():
                state_dict.setdefault(f'{prefix}{name}', torch.full((self.num_heads,), value))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        """Q, K, V (B, h, N, d), and the landmarks q, k (B, h, L, d), of tokens (B, H, W, C).

        Averaging commutes with the projection: where tokens are many, it is cheaper to average the
        input and to project L tokens more than to average the projections.
        """
        qkv = self.qkv(x)  # (B, H, W, 3 C)
        return *self.split_heads(qkv), *self.project_landmarks(x, qkv)

    def project_landmarks(self, x: Tensor, qkv: Tensor) -> tuple[Tensor, Tensor]:
        """q, k (B, h, L, d), of tokens (B, H, W, C) and of what they were projected to."""
        if is_eager(x) and x.shape[1] * x.shape[2] <= FEW * self._landmarks**2:
            pooled = pool_landmarks(qkv, self._landmarks)  # (B, g_h, g_w, 3 C)
        else:
            pooled = self.qkv(pool_landmarks(x, self._landmarks))
        q_landmarks, k_landmarks, _ = self.split_heads(pooled)
        # As views they would keep the unused third of their memory alive.
        return q_landmarks.contiguous(), k_landmarks.contiguous()

    def attn_k(self, q_landmarks: Tensor, k: Tensor) -> Tensor:
        """A_K = softmax(q K^T / sqrt d), (B, h, L, N): what every landmark gathers."""
        return softmax_((q_landmarks * k.shape[-1] ** -0.5) @ k.transpose(-2, -1), -1)

    def attn_q(self, q: Tensor, tokens: Tensor, k_landmarks: Tensor, grid: Tensor) -> Tensor:
        """A_Q^T, (B, h, L, N), for A_Q = softmax(content Q k^T / sqrt d - locality |p_n - p_l|^2).

        The softmax is over landmarks; transposed because long rows suit it and products. Queries
        lie at ``tokens``, (1, N, 3), landmarks at ``grid``, (L, 3), as :func:`positions` has them.
        """
        return softmax_(self.logits_q(q, tokens, k_landmarks, grid), -2).type_as(q)

    def logits_q(self, q: Tensor, tokens: Tensor, k_landmarks: Tensor, grid: Tensor) -> Tensor:
        """What A_Q^T is the softmax of, (B, h, L, N)."""
        content, locality = (a.view(-1, 1, 1) for a in (self.content, self.locality))
        logits = (k_landmarks * (content * q.shape[-1] ** -0.5)) @ q.transpose(-2, -1)
        with exactly(q):
            closeness = grid @ tokens.transpose(-2, -1)  # (1, L, N)
        return add_(logits, locality, closeness)


class _Interaction(MHSA):
    """Mixin of the two below: where the cross-head interaction sits relative to the softmax.

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

    def _mixes(self, name: str) -> tuple[Tensor | None, Tensor | None]:
        """The mix of logits before the softmax and that of the map after it, (h, h) or none."""
        if self.interaction_position == 'pre':
            return getattr(self, name), None
        return getattr(self, f'{name}_pre'), getattr(self, name)


class InteractiveMHSA(_Interaction, MHSA):
    """(c) Full N x N attention whose maps are mixed across heads.

    Quadratic in time and memory: for comparison, and for small grids.

    Args:
        interaction: 'post' (after the softmax), 'pre' or 'both'.
    """

    def __init__(self, dim: int, num_heads: int, interaction: str = 'post') -> None:
        super().__init__(dim, num_heads)
        self._add_interaction(interaction, 'interaction')

    @by_images
    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        q, k, v = self.project(x)
        return self.merge_heads(self.attn(q, k) @ v, x)

    def attn(self, q: Tensor, k: Tensor) -> Tensor:
        """I(A), (B, h, M, N), of M queries and N keys."""
        before, after = self._mixes('interaction')
        logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # (B, h, M, N)
        return mix_heads(after, softmax_(mix_heads(before, logits), -1))


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

    @by_images
    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        q, k, v, q_landmarks, k_landmarks = self.project(x)
        summary = self.gather(q_landmarks, k, v)  # A_K' V, (B, h, L, d)
        tokens, grid = positions(x, self._landmarks)
        # A_Q' (A_K' V), (B, N, h, d)
        y = self.read(q.transpose(1, 2), tokens, k_landmarks, grid, summary)
        return self.merge_heads(y.transpose(1, 2), x)

    @recomputed  # else the maps of N x L, two of each, would be kept
    def gather(self, q_landmarks: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """A_K' V, (B, h, L, d): every landmark's sum of the values."""
        return self.attn_k(q_landmarks, k) @ v

    @recomputed
    @in_pieces(
        lambda q, tokens, k_landmarks, *_: k_landmarks.shape[1] * k_landmarks.shape[2], split=2
    )
    def read(
        self, q: Tensor, tokens: Tensor, k_landmarks: Tensor, grid: Tensor, summary: Tensor
    ) -> Tensor:
        """A_Q' S for the landmarks' sums S, (B, h, L, d): (B, N, h, d) -> (B, N, h, d)."""
        attn_q = self.attn_q(q.transpose(1, 2), tokens, k_landmarks, grid)  # (B, h, L, N)
        return (attn_q.transpose(-2, -1) @ summary).transpose(1, 2)

    def attn_k(self, q_landmarks: Tensor, k: Tensor) -> Tensor:
        """A_K' = I_K(A_K), (B, h, L, N)."""
        before, after = self._mixes('interaction_k')
        logits = (q_landmarks * k.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # q K^T, (B, h, L, N)
        return mix_heads(after, softmax_(mix_heads(before, logits), -1))

    def attn_q(self, q: Tensor, tokens: Tensor, k_landmarks: Tensor, grid: Tensor) -> Tensor:
        """A_Q'^T, (B, h, L, N), for A_Q' = I_Q(A_Q)."""
        before, after = self._mixes('interaction_q')
        logits = mix_heads(before, self.logits_q(q, tokens, k_landmarks, grid))
        return mix_heads(after, softmax_(logits, -2).type_as(q))


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
    options: dict[str, int | str] = {}
    if issubclass(ATTENTIONS[kind], DecomposedMHSA):
        options['landmarks'] = landmarks
    if issubclass(ATTENTIONS[kind], _Interaction):
        options['interaction'] = interaction
    return ATTENTIONS[kind](dim, num_heads, **options)


def undecayed(model: nn.Module) -> dict[str, nn.Parameter]:
    """What the attentions of a model have beside their projections, by name.

    Interaction, content and locality, none of which weight decay is for: it would pull them, and
    with them the output, from where they mean something to zero.
    """
    return {
        f'{prefix}.{name}'.lstrip('.'): parameter
        for prefix, module in model.named_modules()
        if isinstance(module, MHSA)
        for name, parameter in module.named_parameters(recurse=False)
    }
