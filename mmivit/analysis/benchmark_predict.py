"""predict.py beside the stock inferencers and visualisers: images per second, files to files.

All that is compared runs in turn in one process, in another order each round, each with its model
built anew and its pictures and records written; medians over rounds are reported. Both draw what
scores above 0.3. Images are as large as those that predict.py draws at their own size, as the stock
inferencers do with any; smaller ones it enlarges for drawing, so that its pictures are larger.
"""

from __future__ import annotations

import random
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import cv2
import torch

from mmivit.apis.config import check_scope, read_config
from mmivit.apis.models import build_model
from mmivit.apis.pictures import DRAWERS
from mmivit.apis.predict import predict
from mmivit.datasets.shapes import ShapesSpec, write_dataset

COLUMNS = ('who', 'batch', 'processes', 'images per second', 'rounds')
VARIANTS = (('stock', 1, 1), ('stock', 8, 1), *(('mmivit', b, p) for b in (1, 8) for p in (1, 2)))


def benchmark_predict(
    config: str,
    checkpoint: str | None,
    images: int,
    size: int,
    rounds: int,
    folder: Path,
    device: str | None = None,
) -> Iterator[list[tuple]]:
    """Rows of :data:`COLUMNS` after every round, over the rounds until then.

    Args:
        config: of mmdet or mmseg.
        checkpoint: weights; random ones, which find nothing to draw, if not given.
        images: how many are drawn and predicted.
        size: to which they are scaled, pixels a side.
        rounds: how often each.
        folder: for images and predictions.
        device: as predict.py takes it.
    """
    cfg = read_config(config)
    write_dataset(folder / 'data', ShapesSpec(train=1, val=images))
    photos = sorted((folder / 'data/images/validation').iterdir())
    for photo in photos:
        cv2.imwrite(str(photo), cv2.resize(cv2.imread(str(photo)), (size, size)))
    if not checkpoint:
        checkpoint = str(folder / 'random.pth')
        torch.manual_seed(0)
        torch.save(dict(state_dict=build_model(cfg).state_dict(), meta={}), checkpoint)
    run = dict(
        stock=partial(_stock, check_scope(cfg), config, checkpoint, photos, device),
        mmivit=partial(_ours, config, checkpoint, photos, device),
    )
    times: dict[tuple, list[float]] = {variant: [] for variant in VARIANTS}
    order = random.Random(0)
    for _ in range(rounds):
        for variant in order.sample(VARIANTS, len(VARIANTS)):
            who, batch, processes = variant
            out = folder / 'out'
            times[variant].append(_seconds(run[who], out, batch, processes))
            shutil.rmtree(out)
        yield [
            (*variant, f'{images / statistics.median(taken):.2f}', len(taken))
            for variant, taken in times.items()
        ]


def _seconds(function: Callable, *args: object) -> float:
    start = time.perf_counter()
    function(*args)
    return time.perf_counter() - start


def _ours(
    config: str,
    checkpoint: str,
    photos: list,
    device: str | None,
    out: Path,
    batch: int,
    count: int,
) -> None:
    report = predict(config, checkpoint, photos, out, device, batch_size=batch, processes=count)
    assert not report.failed


def _stock(
    scope: str,
    config: str,
    checkpoint: str,
    photos: list,
    device: str | None,
    out: Path,
    batch: int,
    count: int,
) -> None:
    inputs, cfg = list(map(str, photos)), read_config(config)
    cfg.visualizer = dict(type=DRAWERS[scope][1], name='stock')  # the shipped configs have ours
    if scope == 'mmdet':
        from mmdet.apis import DetInferencer

        inferencer = DetInferencer(cfg, checkpoint, device=device, show_progress=False)
        inferencer(inputs, batch_size=batch, out_dir=str(out), no_save_pred=False)
    else:
        from mmseg.apis import MMSegInferencer

        inferencer = MMSegInferencer(cfg, checkpoint, device=device)
        inferencer.show_progress = False
        inferencer(inputs, batch_size=batch, out_dir=str(out))
