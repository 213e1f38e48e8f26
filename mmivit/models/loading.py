"""What of a state dict fits a module: said in the log, or refused."""

from __future__ import annotations

import logging
import re

from mmengine.logging import print_log
from torch import Tensor, nn

from mmivit.errors import CheckpointError
from mmivit.utils.text import listed


def report_loading(module: nn.Module, state_dict: dict[str, Tensor], prefix: str = '') -> None:
    """Log which tensors of a state dict fit a module, and refuse one of which nothing does.

    Meant to be called from the module's ``_load_from_state_dict``, through which every way of
    loading passes.

    Args:
        module: the module about to be loaded.
        state_dict: everything the loader was given.
        prefix: what the module's own names start with in it.

    Raises:
        CheckpointError: not one tensor fits by name and shape.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found = {
        name[len(prefix) :]: tuple(getattr(tensor, 'shape', ()))
        for name, tensor in state_dict.items()
        if name.startswith(prefix)
    }
    name = type(module).__name__
    for key in implied(module) - found.keys():
        del expected[key]
    matched = [key for key in expected if found.get(key) == expected[key]]
    if not matched:
        # A loader hands a sub-module only what begins with its name: often nothing at all.
        raise CheckpointError(
            f'{name}: none of the loaded tensors fits any of its {len(expected)}.\n'
            f'  found:    {listed(list(state_dict)) or f"none that begins with {prefix!r}"}\n'
            f'  expected: {listed([prefix + key for key in expected])}\n'
            '  Is this a checkpoint of another model, or of a part of one?'
        )
    reshaped = [
        f'{key} {found[key]} instead of {expected[key]}'
        for key in expected
        if key in found and found[key] != expected[key]
    ]
    problems = {
        'missing': [prefix + key for key in expected if key not in found],
        'unexpected': [prefix + key for key in found if key not in expected],
        'of another shape': [prefix + line for line in reshaped],
    }
    lines = [f'{name}: {len(matched)} of {len(expected)} tensors found']
    lines += [f'  {len(keys)} {what}: {listed(keys)}' for what, keys in problems.items() if keys]
    level = logging.INFO if len(lines) == 1 else logging.WARNING
    print_log('\n'.join(lines), logger='current', level=level)


def implied(module: nn.Module) -> set[str]:
    """Tensors whose absence from a state dict has a meaning: its modules' ``IMPLIED``."""
    return {
        f'{prefix}.{name}'.lstrip('.')
        for prefix, part in module.named_modules()
        for name in getattr(part, 'IMPLIED', ())
    }


def check_fits(module: nn.Module, state_dict: dict[str, Tensor]) -> None:
    """Refuse weights that would leave a part of a model as it was initialised.

    Auxiliary heads may stay so, which training alone needs.

    Raises:
        CheckpointError: tensors of the model are missing or of another shape.
    """
    optional = re.compile(r'auxiliary_head\.|.*\.num_batches_tracked$')
    expected, by_absence = module.state_dict(), implied(module) - state_dict.keys()
    unfit = [
        name
        for name, tensor in expected.items()
        if not optional.match(name)
        and name not in by_absence
        and (name not in state_dict or state_dict[name].shape != tensor.shape)
    ]
    if unfit:
        raise CheckpointError(
            f'it is of another model: {len(unfit)} of the {len(expected)} tensors of this '
            f'{type(module).__name__} are missing or of another shape: {listed(unfit)}'
        )
