"""The four attentions in timm's plain vision transformers: ViT, DeiT, DINO and their like.

    timm.create_model('vit_small_patch14_reg4_dinov2_imhsa', pretrained=True)
    connect(timm.create_model('vit_tiny_patch16_224', attn_layer=ViTIMHSA))

Beside N patches on a grid these have P tokens in front, the class token and registers, which lie
nowhere. They keep whole attention: as queries they attend to everything, as keys everything attends
to them. Patches attend to patches through L landmarks. With Q, K, V of the patches, Q_P, K_P, V_P
of the tokens in front, q and k of the landmarks, per head of width d,

    A_K = softmax([Q_P; q] K^T / sqrt d)             (P + L) x N, as attention.py has it, and
    m   = log sum_n exp([Q_P; q] K_n^T / sqrt d)     P + L, how much each row finds among patches
    A_Q = I for a token in front, which is its own landmark; for patches, over landmarks,
          softmax(content Q k^T / sqrt d - locality |p_n - p_l|^2)          (P + N) x (P + L)
    w   = softmax([[Q_P; Q] K_P^T / sqrt d, A_Q m])  (P + N) x (P + 1): the patches as one more key

    Y   = I_Q(w_P) V_P + I_Q(w_{P+1} A_Q) (I_K(A_K) V)

Where no tokens are in front, w is 1 and this is the paper's. Where every patch is a landmark and
reads its own (content 0, a large locality), and heads don't interact, m is exact and this is MHSA:
what the landmarks approximate is A_K and m, and never what a patch finds in the tokens in front.

Layers and their names are those of timm's ``Attention`` (biases, norms of queries and keys, dropout
of maps and of the output), so that its weights load; landmarks pass the norms like any token. A
state without content and locality is of an attention with whole maps: they are set to (0, 2), with
which the model stays close to what it was (docs/vision_transformers.md).
"""

from __future__ import annotations

from contextlib import nullcontext
from copy import deepcopy
from functools import partial
from threading import get_ident
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.models import VisionTransformer, model_entrypoint, register_model, register_notrace_module
from torch import Tensor, nn

from mmivit.errors import LaunchError
from mmivit.models.attention import (
    IMHSA,
    LOCAL_START,
    MHSA,
    DecomposedMHSA,
    InteractiveMHSA,
    exactly,
    mix_heads,
    positions,
    softmax_,
    undecayed,
)
from mmivit.models.memory import in_pieces, is_compiling, recomputed

# Of timm's, those that are registered with iMHSA, as NAME_imhsa.
NAMES = (
    'vit_tiny_patch16_224',
    'vit_small_patch16_224',
    'vit_base_patch16_224',
    'deit_tiny_patch16_224',
    'deit_small_patch16_224',
    'deit_base_patch16_224',
    'deit_small_distilled_patch16_224',
    'deit3_small_patch16_224',
    'deit3_base_patch16_224',
    'vit_small_patch8_224',
    'vit_base_patch8_224',
    'vit_small_patch14_dinov2',
    'vit_base_patch14_dinov2',
    'vit_small_patch14_reg4_dinov2',
    'vit_base_patch14_reg4_dinov2',
)


class TokenGrid:
    """How many tokens stand in front of the patches, and the grid these lie on.

    With a fixed image size that is the patch embedding's. With ``dynamic_img_size`` a hook on it
    notes the grid of the pass that runs: for each thread, because one model may serve several; the
    thread in which autograd runs checkpointed blocks again has none of its own, and takes the last.
    """

    def __init__(self, model: VisionTransformer) -> None:
        self.prefix: int = model.num_prefix_tokens
        self.embed = model.patch_embed
        self.dynamic: bool = model.dynamic_img_size
        self._last: tuple[int, int] = self.embed.grid_size
        self._sizes: dict[int, tuple[int, int]] = {}
        if self.dynamic:
            self.embed.register_forward_hook(self.note)

    def note(self, embed: nn.Module, inputs: tuple[Tensor], _: Tensor) -> None:
        """Called by the patch embedding with the images that it was given."""
        self._last = embed.dynamic_feat_size(inputs[0].shape[-2:])
        if not is_compiling():
            self._sizes[get_ident()] = self._last

    @property
    def size(self) -> tuple[int, int]:
        """Rows H and columns W of the patches."""
        if not self.dynamic:
            return self.embed.grid_size
        return self._last if is_compiling() else self._sizes.get(get_ident(), self._last)


class _OfTimm(MHSA):
    """Base of the four: timm's layers around a sum of the values that they make differently.

    Constructed by timm, with the arguments of its ``Attention``; it takes and returns (B, P + N, C)
    where that does.
    """

    _token_grid: TokenGrid | None = None

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        qkv_bias: bool = False,
        qk_norm: bool = False,
        scale_norm: bool = False,
        proj_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        norm_layer: type[nn.Module] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        with nullcontext() if device is None else torch.device(device):
            super().__init__(dim, num_heads)
            layers = Attention(
                dim,
                num_heads,
                qkv_bias=qkv_bias,
                qk_norm=qk_norm,
                scale_norm=scale_norm,
                proj_bias=proj_bias,
                attn_drop=attn_drop,
                proj_drop=proj_drop,
                norm_layer=norm_layer,
            )
        for name, layer in layers.named_children():
            setattr(self, name, layer)
        self.to(dtype)

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """(B, P + N, C) -> (B, P + N, C).

        Raises:
            LaunchError: a mask is given; or the grid is not known, or is not of these tokens.
        """
        if attn_mask is not None or is_causal:
            raise LaunchError(
                f'{type(self).__name__} takes no mask: expected attn_mask=None, is_causal=False; '
                'masks are for attn_layer=ViTMHSA'
            )
        return self.merge_heads(self.attend(*self.project(x)), x)

    def split_heads(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, P + N, 3 C) or (B, H, W, 3 C) -> three of (B, h, tokens, d)."""
        q, k, v = super().split_heads(qkv if qkv.ndim == 4 else qkv.unsqueeze(1))
        return self.q_norm(q), self.k_norm(k), v

    def merge_heads(self, y: Tensor, x: Tensor) -> Tensor:
        """The heads' outputs (B, h, P + N, d), concatenated and projected, in the shape of x."""
        # (B, h, P + N, d) -> (B, P + N, h, d) -> (B, P + N, C)
        y = self.norm(y.transpose(1, 2).reshape(x.shape))
        return self.proj_drop(self.proj(y))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *landmarks: Tensor) -> Tensor:
        """The values' sums (B, h, P + N, d') of what :meth:`project` gave; linear in V."""
        return self.attn_drop(self.attn(q, k)) @ v

    @property
    def token_grid(self) -> TokenGrid:
        """Where the tokens lie; :func:`connect` tells."""
        if self._token_grid is None:
            raise LaunchError(
                f"{type(self).__name__} doesn't know the grid its tokens lie on: expected "
                'mmivit.models.vit.connect(model) after timm.create_model(..., attn_layer=...)'
            )
        return self._token_grid

    @token_grid.setter
    def token_grid(self, grid: TokenGrid) -> None:
        self._token_grid = grid

    def patches(self, x: Tensor) -> Tensor:
        """Those of the tokens (B, P + N, C) that lie on the grid, (B, H, W, C)."""
        grid = self.token_grid
        height, width = grid.size
        if x.shape[1] != grid.prefix + height * width:
            raise LaunchError(
                f'{x.shape[1]} tokens: expected {grid.prefix} + {height} x {width}, those of the '
                'last images. With gradient checkpointing, call backward before images of another '
                'size'
            )
        return x[:, grid.prefix :].unflatten(1, (height, width))

    def sibling(self, kind: str) -> MHSA:
        """A new attention of another kind with layers of the same sizes; for looking at."""
        other = ATTENTIONS[kind](self.proj.in_features, self.num_heads)
        for name, layer in self.named_children():
            setattr(other, name, deepcopy(layer))
        other._token_grid = self._token_grid
        if isinstance(self, DecomposedMHSA) and isinstance(other, DecomposedMHSA):
            other.landmarks = self.landmarks
        return other

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: object) -> None:
        if self._holds_projection(state_dict, prefix):
            for name, parameter in self.named_parameters(recurse=False):
                if name.startswith('interaction'):
                    state_dict.setdefault(f'{prefix}{name}', torch.eye(len(parameter)))
        super()._load_from_state_dict(state_dict, prefix, *args)


class ViTMHSA(_OfTimm):
    """(a) What timm's own ``Attention`` computes; for comparison, and for looking at."""

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """(B, P + N, C) -> (B, P + N, C)."""
        q, k, v = self.project(x)
        dropout = self.attn_drop.p if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask, dropout, is_causal)
        return self.merge_heads(y, x)


class ViTInteractiveMHSA(_OfTimm, InteractiveMHSA):
    """(c) Whole maps, class token and registers in them, mixed across heads."""


class ViTDecomposedMHSA(_OfTimm, DecomposedMHSA):
    """(b) Through landmarks, without interaction: the module's formula with I_Q, I_K left out."""

    IMPLIED = LOCAL_START

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        """Of tokens (B, P + N, C) what :meth:`attend` takes.

        Q, K, V of all (B, h, P + N, d), q, k of the landmarks (B, h, L, d), and the positions of
        patches (1, N, 3) and landmarks (L, 3), as :func:`positions` has them.
        """
        qkv, patches = self.qkv(x), self.patches(x)
        return (
            *self.split_heads(qkv),
            *self.project_landmarks(patches, self.patches(qkv)),
            *positions(patches, self.landmarks),
        )

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *landmarks: Tensor) -> Tensor:
        """Y, (B, h, P + N, d'), of what :meth:`project` gave; linear in V."""
        q_landmarks, k_landmarks, tokens, grid = landmarks
        prefix = self.token_grid.prefix
        (q_prefix, q), (k_prefix, k), (v_prefix, v) = (
            (a[:, :, :prefix], a[:, :, prefix:]) for a in (q, k, v)
        )
        found = self.gather(torch.cat([q_prefix, q_landmarks], 2), k, v)  # (B, h, P + L, d' + 1)
        of_prefix, of_landmarks = found[:, :, :prefix], found[:, :, prefix:]
        # (B, N, h, d')
        y = self.read(
            q.transpose(1, 2), tokens, k_landmarks, grid, of_landmarks, k_prefix, v_prefix
        )
        if not prefix:
            return y.transpose(1, 2)
        itself = torch.eye(prefix, dtype=q.dtype, device=q.device)
        y_prefix = self.combine(q_prefix, itself, of_prefix, k_prefix, v_prefix)
        return torch.cat([y_prefix, y.transpose(1, 2)], 2)

    @recomputed
    def gather(self, rows: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """[A_K' V, m], (B, h, P + L, d' + 1), in fp32 or better: what rows find among patches."""
        logits = (rows * rows.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # (B, h, P + L, N)
        dtype = torch.promote_types(logits.dtype, torch.float32)
        mass = logits.to(dtype).logsumexp(-1, keepdim=True)
        attn_k = self.attn_drop(mix_heads(self._mix('interaction_k'), softmax_(logits, -1)))
        return torch.cat([(attn_k @ v).to(dtype), mass], -1)

    @recomputed
    @in_pieces(
        lambda q, tokens, k_landmarks, *_: k_landmarks.shape[1] * k_landmarks.shape[2], split=2
    )
    def read(
        self,
        q: Tensor,
        tokens: Tensor,
        k_landmarks: Tensor,
        grid: Tensor,
        found: Tensor,
        k_prefix: Tensor,
        v_prefix: Tensor,
    ) -> Tensor:
        """Y of the patches: queries (B, N, h, d) -> (B, N, h, d')."""
        q = q.transpose(1, 2)
        # Before heads interact, whichever the module is.
        attn_q = DecomposedMHSA.attn_q(self, q, tokens, k_landmarks, grid)  # A_Q^T, (B, h, L, N)
        return self.combine(q, attn_q, found, k_prefix, v_prefix).transpose(1, 2)

    def combine(
        self, q: Tensor, attn_q: Tensor, found: Tensor, k_prefix: Tensor, v_prefix: Tensor
    ) -> Tensor:
        """I_Q(w_P) V_P + I_Q(w_{P+1} A_Q) (A_K' V), (B, h, M, d'), for M queries (B, h, M, d).

        Args:
            q: the queries.
            attn_q: A_Q^T, (B, h, rows, M).
            found: of the rows, [A_K' V, m], (B, h, rows, d' + 1).
            k_prefix: K_P, (B, h, P, d).
            v_prefix: V_P, (B, h, P, d').
        """
        sums, mass, mix = found[..., :-1].type_as(v_prefix), found[..., -1:], self._mix
        prefix = self.token_grid.prefix
        if prefix:
            near = (k_prefix * q.shape[-1] ** -0.5) @ q.transpose(-2, -1)  # (B, h, P, M)
            with exactly(q):  # eight bits of mantissa don't hold a logarithm
                of_patches = mass.transpose(-2, -1) @ attn_q.type_as(mass)  # (A_Q m)^T
            w = softmax_(torch.cat([near.type_as(mass), of_patches], 2), 2).type_as(q)
            w_prefix, w_patches = w[:, :, :prefix], w[:, :, prefix:]
            attn_q = attn_q * w_patches
        y = self.attn_drop(mix_heads(mix('interaction_q'), attn_q)).transpose(-2, -1) @ sums
        if prefix:
            w_prefix = self.attn_drop(mix_heads(mix('interaction_q'), w_prefix))
            y = y + w_prefix.transpose(-2, -1) @ v_prefix
        return y

    def _mix(self, name: str) -> Tensor | None:
        """The mix of a map's heads after its softmax, (h, h) or none."""
        return getattr(self, name, None)


class ViTIMHSA(ViTDecomposedMHSA, IMHSA):
    """(d) Through landmarks, with interaction after both softmaxes: the module's formula."""


ATTENTIONS = {
    'mhsa': ViTMHSA,
    'decomposed': ViTDecomposedMHSA,
    'interactive': ViTInteractiveMHSA,
    'imhsa': ViTIMHSA,
}

for _attention in ATTENTIONS.values():  # as for the classifier: fx cannot follow landmarks
    register_notrace_module(_attention)


def connect(model: nn.Module, landmarks: int | None = None) -> nn.Module:
    """Tell the attentions of a vision transformer the grid of its tokens, and timm what they add.

    timm builds attentions without telling them of the model. What is added is what its optimisers
    don't decay: interaction, content and locality.

    Args:
        model: a ``VisionTransformer`` of timm, or a module that has some, such as timm's
            ``features_only`` makes, with ``attn_layer`` one of :data:`ATTENTIONS`.
        landmarks: side of the landmark grid; as it is if not given.

    Returns:
        The model.

    Raises:
        LaunchError: it has no such attention, or drops patches, and the others lie on no grid.
    """
    found = False
    for vit in (module for module in model.modules() if isinstance(module, VisionTransformer)):
        attentions = [module for module in vit.modules() if isinstance(module, _OfTimm)]
        if not attentions:
            continue
        found = True
        if not isinstance(vit.patch_drop, nn.Identity):
            raise LaunchError(
                f'patch_drop_rate={vit.patch_drop.prob}: the patches that are left lie on no '
                'grid; expected 0'
            )
        if attentions[0]._token_grid is None:
            grid = TokenGrid(vit)
            for attention in attentions:
                attention.token_grid = grid
            vit.no_weight_decay = partial(_no_weight_decay, vit)
        for attention in attentions:
            if landmarks is not None and isinstance(attention, DecomposedMHSA):
                attention.landmarks = landmarks
    if not found:
        raise LaunchError(
            f'{type(model).__name__} has no VisionTransformer of timm with an attention of ours: '
            "expected timm.create_model('vit_...', attn_layer=ViTIMHSA)"
        )
    return model


def _no_weight_decay(vit: VisionTransformer) -> set[str]:
    return type(vit).no_weight_decay(vit) | set(undecayed(vit))


def _register(name: str) -> None:
    """Register one of timm's models with iMHSA, and timm's own weights as what it starts from."""
    build = model_entrypoint(name)

    def create(pretrained: bool = False, landmarks: int = 7, **options: Any) -> nn.Module:
        overlay = options.pop('pretrained_cfg_overlay', None) or {}
        options['pretrained_cfg_overlay'] = dict(architecture=create.__name__) | overlay
        return connect(build(pretrained, attn_layer=ViTIMHSA, **options), landmarks)

    create.__name__ = create.__qualname__ = f'{name}_imhsa'
    create.__doc__ = f"timm's {name} with iMHSA: its layers, its weights."
    register_model(create)


for _name in NAMES:
    _register(_name)
