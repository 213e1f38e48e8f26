"""Times of functions that are compared, and the machine they were taken on. Needs torch.

What is compared is run in turn in one process, so that a busy machine slows all of it alike;
medians and quartiles are reported.
"""

from __future__ import annotations

import platform
import random
import statistics
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import torch

ROUNDS, SECONDS = 100, 20.0  # of a comparison: at most, and about as long; three rounds at least


def machine(device: str) -> dict[str, str]:
    """What the figures depend on, and a probe of a trap: see docs/benchmarks.md."""
    cpu = platform.processor() or platform.machine()
    info = Path('/proc/cpuinfo')
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith('model name')]
        cpu = names[0].split(':', 1)[1].strip() if names else cpu
    x = torch.randn(1, 10, 4200, 49)
    probe = statistics.median(_time(lambda: x.softmax(-1), 'cpu') for _ in range(5))
    return dict(
        date=datetime.now(timezone.utc).strftime('%Y-%m-%d'),
        cpu=cpu,
        threads=str(torch.get_num_threads()),
        gpu=torch.cuda.get_device_name() if device == 'cuda' else 'none',
        torch=torch.__version__,
        python=platform.python_version(),
        softmax_probe_ms=f'{1e3 * probe:.1f}',
    )


def compare(
    functions: dict[str, Callable[[], object]], device: str, limit: float = SECONDS
) -> dict[str, dict]:
    """Seconds of each function: median, first and third quartile, rounds.

    One warm call each, then rounds in turn, in another order each time: what comes after a call
    that frees gigabytes is slower. After ``limit`` seconds no round begins but the first three.
    """
    for function in functions.values():
        function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    order = random.Random(0)
    start = time.perf_counter()
    for i in range(ROUNDS):
        for name in order.sample(list(functions), len(functions)):
            times[name].append(_time(functions[name], device))
        if i >= 2 and time.perf_counter() - start > limit:
            break
    result = {}
    for name, values in times.items():
        low, median, high = statistics.quantiles(values, n=4, method='inclusive')
        result[name] = dict(seconds=median, low=low, high=high, rounds=len(values))
    return result


def _time(function: Callable[[], object], device: str) -> float:
    if device == 'cuda':
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if device == 'cuda':
        torch.cuda.synchronize()
    return time.perf_counter() - start
