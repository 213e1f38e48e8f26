"""What of a state dict fits a module: said in the log, or refused."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Mapping

from mmengine.logging import print_log
from torch import Tensor, nn

from mmivit.errors import CheckpointError
from mmivit.models.attention import MHSA
from mmivit.utils.text import listed

Shapes = Mapping[str, tuple[int, ...]]
# What torch puts around modules to divide or to recompute them; state dicts don't name it.
WRAPPER = re.compile(r'(^|\.)_(fsdp|checkpoint)_wrapped_module(?=\.|$)')


def report_loading(
    module: nn.Module,
    state_dict: dict[str, Tensor],
    prefix: str,
    name_size: Callable[[Shapes], str],
) -> None:
    """Log which tensors of a state dict fit a module, and refuse one of which too little does.

    Meant to be called from the module's ``_load_from_state_dict``, through which every way of
    loading passes.

    Args:
        module: the module about to be loaded.
        state_dict: everything the loader was given.
        prefix: what the module's own names start with in it.
        name_size: names the size of such a module, by its tensors' shapes; '' if they don't tell.

    Raises:
        CheckpointError: the tensors that fit by name and shape hold less than half of the module's
            numbers, and are not all that it trains (an adapter's); or its heads are others.
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
    numbers = sum(map(math.prod, expected.values()))
    fit = sum(math.prod(expected[key]) for key in matched)
    trained = {key for key, parameter in module.named_parameters() if parameter.requires_grad}
    if 2 * fit < numbers and not (trained and trained.issubset(matched)):
        theirs, own = name_size(found), name_size(expected)
        what = (
            'Is this a part of a checkpoint?'
            if theirs in ('', own)
            else f'They are of size {theirs}, it is of size {own}: take weights of that size, or '
            'set arch to the other.'
        )
        raise CheckpointError(
            f'{name}: the loaded tensors hold {fit:,} of its {numbers:,} numbers '
            f'({len(matched)} of {len(expected)} tensors fit by name and shape). {what}'
        )
    check_heads(module, found)
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
    if fit < numbers:
        lines[0] += f', {fit:,} of {numbers:,} numbers'
    lines += [f'  {len(keys)} {what}: {listed(keys)}' for what, keys in problems.items() if keys]
    level = logging.INFO if len(lines) == 1 else logging.WARNING
    print_log('\n'.join(lines), logger='current', level=level)


def implied(module: nn.Module) -> set[str]:
    """Tensors whose absence from a state dict has a meaning: its attentions' ``IMPLIED``."""
    return {
        f'{prefix}.{name}'.lstrip('.')
        for prefix, part in attentions(module).items()
        for name in getattr(part, 'IMPLIED', ())
    }


def attentions(module: nn.Module) -> dict[str, MHSA]:
    """A module's attentions, by what their tensors' names in its state dict begin with."""
    return {
        WRAPPER.sub('', name).lstrip('.'): part
        for name, part in module.named_modules()
        if isinstance(part, MHSA)
    }


def check_heads(module: nn.Module, found: Shapes) -> None:
    """Refuse weights of attention with another number of heads.

    The projections have the same shapes then, and other rows belong together.

    Args:
        module: with attention of ours in it.
        found: shapes of the weights, under the module's names.

    Raises:
        CheckpointError: a tensor with an entry for each head has another number of them.
    """
    for name, part in attentions(module).items():
        for key, _ in part.named_parameters(name, recurse=False):
            heads = found[key][0] if found.get(key) else part.num_heads
            if heads != part.num_heads:
                raise CheckpointError(
                    f'{key} is of {heads} heads, this model has {part.num_heads} there: the '
                    'weights mean something else in heads of another width; set head_dim to '
                    'what they were trained with'
                )


def check_fits(module: nn.Module, state_dict: dict[str, Tensor]) -> None:
    """Refuse weights that would leave a part of a model as it was initialised.

    Auxiliary heads may stay so, which training alone needs.

    Raises:
        CheckpointError: tensors of the model are missing or of another shape, or its attention
            lacks some that the weights were trained with.
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
    places = attentions(module).keys()
    if unfit and places >= {name.rpartition('.')[0] for name in unfit}:
        check_heads(module, {name: tuple(tensor.shape) for name, tensor in state_dict.items()})
    if unfit:
        raise CheckpointError(
            f'it is of another model: {len(unfit)} of the {len(expected)} tensors of this '
            f'{type(module).__name__} are missing or of another shape: {listed(unfit)}'
        )
    idle = [
        name for name in state_dict if name not in expected and name.rpartition('.')[0] in places
    ]
    if idle:
        raise CheckpointError(
            f'it is of another model: the attention of this {type(module).__name__} has no '
            f'{listed(idle)}; set attention and interaction to what it was trained with'
        )
