"""How memory is spent, decided by decorators: the attention and the blocks read as their equations.

At inference on a CPU fresh memory costs more than the arithmetic on it: its pages are mapped on
first use, and what doesn't fit the cache passes through memory with every operation. There methods
run on a few rows or images at a time. In training it is the backward pass that keeps tensors alive;
there methods are run again instead. Compilers, tracers and function transforms see the plain graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.utils.checkpoint import checkpoint

try:
    from torch.compiler import is_compiling
except ImportError:  # torch before 2.3
    from torch._dynamo import is_compiling

PIECE = 2**20  # elements of a temporary, 4 MiB in fp32
CACHED = 2**16  # elements of a tensor that elementwise work passes over several times, 256 KiB

Method = Callable[..., Tensor]


def is_eager(x: Tensor) -> bool:
    """Whether a tensor is computed on as the code says, neither traced nor transformed.

    False for symbolic tensors (fx, export), under compilers and tracers, and within the transforms
    of ``torch.func``, which do not take checkpoints and functions of their own.
    """
    return (
        type(x) is Tensor
        and not is_compiling()
        and not torch.jit.is_tracing()
        and not torch._C._are_functorch_transforms_active()
    )


def is_lean(x: Tensor) -> bool:
    """Whether memory is worth saving: inference on a CPU.

    The meta device, on which costs are counted, stands for a CPU.
    """
    return not torch.is_grad_enabled() and is_eager(x) and x.device.type in ('cpu', 'meta')


def _may_split(module: nn.Module, x: Tensor) -> bool:
    """Whether a module may be given parts of x: whatever hooks are attached get whole tensors."""
    return (
        is_lean(x)
        and not module.training  # masks of stochastic depth are drawn for whole images
        and not torch_module._has_any_global_hook()
        and not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
    )


def in_pieces(widest: Callable[..., int], split: int = 1) -> Callable[[Method], Method]:
    """At inference on a CPU, run a method on some slices of its input's second axis at a time.

    For methods (B, rows, ...) -> (B, rows, ...) that treat each row by itself.

    Args:
        widest: from the method's arguments (without ``self``), elements per row and image of its
            widest temporary.
        split: how many of the arguments, from the first, have rows; the others it gets whole.
    """

    def decorate(method: Method) -> Method:
        @wraps(method)
        def run(self: nn.Module, x: Tensor, *others: Tensor) -> Tensor:
            if not _may_split(self, x):
                return method(self, x, *others)
            rows = max(1, PIECE // max(1, x.shape[0] * widest(x, *others)))
            if x.shape[1] <= rows:
                return method(self, x, *others)
            pieces = zip(*(a.split(rows, 1) for a in (x, *others[: split - 1])))
            whole = others[split - 1 :]
            return torch.cat([method(self, *piece, *whole) for piece in pieces], 1)

        return run

    return decorate


def by_images(method: Method) -> Method:
    """At inference on a CPU, run a method (B, ...) -> (B, ...) on as many images as fit a piece."""

    @wraps(method)
    def run(self: nn.Module, x: Tensor) -> Tensor:
        if not _may_split(self, x):
            return method(self, x)
        images = max(1, PIECE // max(1, x.shape[1:].numel()))
        if x.shape[0] <= images:
            return method(self, x)
        return torch.cat([method(self, piece) for piece in x.split(images)])

    return run


def recomputed(method: Method) -> Method:
    """In training, keep only a method's inputs for the backward pass, and run it again there.

    Up to the last operation that needs what was made on the way: a product at the method's end is
    not repeated. Random numbers are drawn as the first time, for what may be attached to layers
    (the dropout of an adapter).
    """

    @wraps(method)
    def run(self: nn.Module, *inputs: Tensor) -> Tensor:
        if self.training and is_eager(inputs[0]):
            return checkpoint(method, self, *inputs, use_reentrant=False)
        return method(self, *inputs)

    return run


def cached(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Parts of tensors of one shape, on a CPU small enough to stay in the cache meanwhile."""
    if tensors[0].device.type != 'cpu' or not all(t.is_contiguous() for t in tensors):
        return chain((tensors,))
    return zip(*(t.view(-1).split(CACHED) for t in tensors))
