"""Images in batches: prepared in a thread beside the model, put together by their shape.

A model pads the images of a batch to the largest. Here a batch holds images of one shape alone, so
that what is found in an image does not depend on which others there are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

HELD = 4  # batches' worth of images in memory that wait for others of their shape

T = TypeVar('T')


def ahead(items: Iterable[T], most: int) -> Iterator[T]:
    """The items of an iterator that runs in a thread of its own.

    Args:
        items: made one after another, in order.
        most: how many are made before they are asked for.
    """
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(1) as thread:
        made = deque(thread.submit(next, iterator, end) for _ in range(most))
        while (item := made.popleft().result()) is not end:
            made.append(thread.submit(next, iterator, end))
            yield item  # type: ignore[misc]  # not the end


def batches(items: Iterable[T], size: int, key: Callable[[T], Hashable]) -> Iterator[list[T]]:
    """The items in lists of one key each, in their order within a key.

    Args:
        items: as they come.
        size: of a list; the last of a key may be shorter, and so are those made because too many
            items wait.
        key: what the items of a list have in common.
    """
    waiting: dict[Hashable, list[T]] = {}
    for item in items:
        kind = key(item)
        waiting.setdefault(kind, []).append(item)
        if len(waiting[kind]) == size:
            yield waiting.pop(kind)
        elif sum(map(len, waiting.values())) >= HELD * size:
            yield waiting.pop(max(waiting, key=lambda kind: len(waiting[kind])))
    yield from waiting.values()
