"""COCO files by themselves."""

import numpy as np
from pycocotools import mask as rle

from mmivit.datasets.coco_file import unpack_runs


def test_run_lengths_are_unpacked_as_pycocotools_packs_them():
    rng = np.random.default_rng(0)
    for size in (1, 7, 300):
        for share in (0, 0.01, 0.5, 1):
            mask = rng.random((size, size + 2)) < share
            runs = unpack_runs(rle.encode(np.asfortranarray(mask, np.uint8))['counts'].decode())
            values = np.arange(len(runs)) % 2
            assert (np.repeat(values, runs).reshape(mask.shape, order='F') == mask).all()
