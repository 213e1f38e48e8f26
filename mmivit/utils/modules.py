"""Modules that are looked into and left as they were. Needs torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from torch import Tensor, nn


@contextmanager
def in_evaluation(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and afterwards every sub-module in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode


class Call(NamedTuple):
    """What a module was last called with, its first argument alone, and what it returned."""

    input: Tensor
    output: Tensor


@contextmanager
def recorded(model: nn.Module, names: Iterable[str]) -> Iterator[dict[str, Call]]:
    """The calls of some of a model's modules while the context lasts, by the modules' names.

    Raises:
        AttributeError: the model has no module of such a name.
    """
    calls: dict[str, Call] = {}
    with ExitStack() as stack:
        for name in names:

            def keep(_: nn.Module, inputs: tuple, output: Tensor, name: str = name) -> None:
                calls[name] = Call(inputs[0], output)

            stack.enter_context(model.get_submodule(name).register_forward_hook(keep))
        yield calls
