"""What the benchmarks share: a step to time, the memory it takes, files and tables of figures."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from mmivit.utils.files import whole, write_whole
from mmivit.utils.tables import markdown_table


def step(module: nn.Module, x: Tensor, training: bool) -> Callable[[], object]:
    """A forward pass, or with ``training`` a forward and backward pass, to be called.

    Args:
        module: gives a tensor or several.
        x: what it takes.
        training: whether it learns.
    """
    if not training:

        @torch.no_grad()
        def forward() -> object:
            module.eval()  # mmdet's return None
            return module(x)

        return forward

    def forward_and_backward() -> None:
        module.train()
        outputs = module(x)
        outputs = outputs if isinstance(outputs, (tuple, list)) else [outputs]
        sum(output.float().square().mean() for output in outputs).backward()

    return forward_and_backward


def saved_bytes(function: Callable[[], Tensor], besides: Sequence[Tensor] = ()) -> int:
    """Bytes that a forward pass keeps for the backward pass, each storage once.

    Args:
        function: the forward pass.
        besides: tensors that exist anyway, such as parameters.
    """
    anyway = {tensor.untyped_storage().data_ptr() for tensor in besides}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in anyway:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = function()  # held: freed storages could be counted twice
    del output
    return sum(kept.values())


def peak_bytes(function: Callable[[], object], device: str) -> int:
    """Most bytes that are allocated at once while the function runs, beyond those before."""
    if device == 'cuda':
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    events = profiler.profiler.kineto_results.events()
    current = peak = 0
    for event in sorted(
        (e for e in events if e.name() == '[memory]'), key=lambda event: event.start_ns()
    ):
        current += event.nbytes()
        peak = max(peak, current)
    return peak


def mark(reached: bool) -> str:
    """What a line about a goal begins with."""
    return 'reached' if reached else 'missed '


def write_rows(rows: list[dict], setting: dict[str, str], stem: Path) -> None:
    """``stem.json`` with the machine, and ``stem.csv``."""
    content = json.dumps(dict(machine=setting, rows=rows), indent=1)
    write_whole(stem.with_suffix('.json'), content.encode())
    with whole(stem.with_suffix('.csv')) as partial, partial.open('w', newline='') as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def table(rows: list[dict], by: str, across: Sequence[str]) -> str:
    """Markdown: median milliseconds of every ``by``, a column per combination of ``across``."""
    columns = list(dict.fromkeys(tuple(row[key] for key in across) for row in rows))
    found = {(row[by], tuple(row[key] for key in across)): row['seconds'] for row in rows}
    lines = []
    for name in dict.fromkeys(row[by] for row in rows):
        times = [found.get((name, column)) for column in columns]
        lines.append([name, *('' if time is None else f'{1e3 * time:.4g}' for time in times)])
    return markdown_table([by, *(' x '.join(map(str, column)) for column in columns)], lines)
