"""predict.py in several processes, each with a model of its own."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from typing import Any

import cv2
import torch
from mmengine.logging import MMLogger

from mmivit.apis.inferencers import Detector, Segmentor
from mmivit.apis.predict_files import (
    Outcome,
    Settings,
    Task,
    build_predictor,
    find_outcomes,
    prepared_config,
)
from mmivit.apis.quiet import is_quiet, quiet

SHARE = 8  # batches that a process takes at a time, at most


def find_outcomes_in_processes(
    predictor: Detector | Segmentor, settings: Settings, tasks: list[Task], count: int
) -> Iterator[Outcome]:
    """Predict in several processes, each of which takes a share when it has done the one before.

    This one is the first of them: it is through with some shares before the others have imported
    what they need.
    """
    images = [task for task in tasks if not task.is_video]
    size = share_size(len(images), count, settings.batch_size)
    shares = [images[first : first + size] for first in range(0, len(images), size)]
    shares += [[task] for task in tasks if task.is_video]
    own, shares = shares[0], shares[1:]
    count = min(count, 1 + len(shares))
    if not shares:
        yield from find_outcomes(predictor, own, settings.batch_size, shown=True)
        return
    context = multiprocessing.get_context('spawn')  # forked, torch's threads and CUDA fail
    ranks = context.Queue()
    for rank in range(1, count):
        ranks.put(rank)
    begin: Callable = _begin
    threads = torch.get_num_threads(), cv2.getNumThreads()
    with ProcessPoolExecutor(count - 1, context, begin, (ranks, count, is_quiet())) as pool:
        try:
            left = {pool.submit(_predict_share, settings, share): share for share in shares}
            _share_cores(count)
            yield from find_outcomes(predictor, own, settings.batch_size)
            while left:
                mine = next((future for future in reversed(left) if future.cancel()), None)
                if mine:
                    yield from find_outcomes(predictor, left.pop(mine), settings.batch_size)
                else:
                    wait(left, return_when=FIRST_COMPLETED)
                for future in [future for future in left if future.done()]:
                    del left[future]
                    yield from future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            torch.set_num_threads(threads[0])
            cv2.setNumThreads(threads[1])


def share_size(images: int, count: int, batch_size: int) -> int:
    """Images that a process takes at a time: whole batches, a fourth of what falls to it at most.

    So none waits long for the last.
    """
    each = -(-images // count)
    if each <= batch_size:
        return max(1, each)
    return batch_size * max(1, min(SHARE, each // (4 * batch_size)))


_process: dict = {}  # of a process that another has started: its rank, and its predictor if any


def _begin(ranks: Any, count: int, quietly: bool) -> None:
    """Of as many processes all but the first are silent; they share the cores and the GPUs."""
    _process['rank'] = ranks.get()
    if quietly:
        _process['quiet'] = quiet(told=False)
        _process['quiet'].__enter__()  # to the end
    sys.stdout = sys.stderr = open(os.devnull, 'w')  # noqa: SIM115 - to the end
    _share_cores(count)


def _share_cores(count: int) -> None:
    torch.set_num_threads(max(1, torch.get_num_threads() // count))
    cv2.setNumThreads(max(1, cv2.getNumThreads() // count))


def _predict_share(settings: Settings, tasks: list[Task]) -> list[Outcome]:
    if 'predictor' not in _process:
        logger = MMLogger.get_current_instance()
        level = logger.level
        logger.setLevel(logging.ERROR)  # the process that started this one has told of the options
        cfg = prepared_config(settings)
        logger.setLevel(level)
        gpus = torch.cuda.device_count()
        device = f'cuda:{_process["rank"] % gpus}' if gpus else None
        _process['predictor'] = build_predictor(settings, cfg, device)
    return list(find_outcomes(_process['predictor'], tasks, settings.batch_size))
