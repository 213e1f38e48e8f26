"""What is kept in memory, and for how long: the attention and the blocks decide it here.

At inference on a CPU fresh memory costs more than the arithmetic on it: its pages are mapped on
first use, and what doesn't fit the cache passes through memory with every operation. In training
it is the backward pass that keeps tensors alive.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

try:
    from torch.compiler import is_compiling
except ImportError:  # torch before 2.3
    from torch._dynamo import is_compiling

PIECE = 2**20  # elements of a temporary, 4 MiB in fp32


@torch.jit.unused
def is_eager(x: Tensor) -> bool:
    """False for symbolic tensors (fx, export) and under tracers, which must see plain graphs."""
    return type(x) is Tensor and not torch.jit.is_tracing() and not is_compiling()


@torch.jit.unused
def is_lean(x: Tensor) -> bool:
    """Whether memory is worth saving: inference on a CPU, outside tracers.

    The meta device, on which costs are counted, stands for a CPU.
    """
    return not torch.is_grad_enabled() and is_eager(x) and x.device.type in ('cpu', 'meta')


def in_pieces(function: Callable[..., Tensor], x: Tensor, width: int, *others: Tensor) -> Tensor:
    """``function(x, *others)``, at inference on a CPU some slices of x's second axis at a time.

    Args:
        function: (B, rows, ...) -> (B, rows, ...), each row by itself.
        x: its first argument.
        width: elements per row and image of the function's widest temporary.
        others: what it needs besides, whole.
    """
    if not is_lean(x):
        return function(x, *others)
    rows = max(1, PIECE // max(1, x.shape[0] * width))
    if x.shape[1] <= rows:
        return function(x, *others)
    return torch.cat([function(piece, *others) for piece in x.split(rows, 1)], 1)


def by_images(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``function(x)``, at inference on a CPU as many images at a time as fit a piece.

    Args:
        function: (B, ...) -> (B, ...), each image by itself.
        x: its argument.
    """
    if not is_lean(x):
        return function(x)
    images = max(1, PIECE // max(1, x[0].numel()))
    if x.shape[0] <= images:
        return function(x)
    return torch.cat([function(piece) for piece in x.split(images)])


def recompute(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """``function(*inputs)`` for training: only the inputs are kept for the backward pass.

    What the function made on the way is remade then, up to the last operation that needs it:
    a product at the end of the function is not repeated.
    """
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
