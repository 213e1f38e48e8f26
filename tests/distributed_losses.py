"""Run by test_distributed.py, once for each rank: trains a few steps on a fixed order of images.

Each rank writes the losses that all ranks agree on, and the images it saw, to RANK.json.
"""

import json
import sys
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import Hook

from mmivit.apis.runner import build_runner


class Recorder(Hook):
    """Losses averaged over ranks, images and frozen parameters of every step."""

    def __init__(self):
        self.losses, self.images = [], []

    def before_train(self, runner):
        model = runner.model.module if get_world_size() > 1 else runner.model
        self.stem = model.backbone.stem.conv.weight
        self.before = self.stem.detach().clone()

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        loss = outputs['loss'].detach().clone()
        if get_world_size() > 1:
            torch.distributed.all_reduce(loss)
            loss /= get_world_size()
        self.losses.append(loss.item())
        self.images += [sample.img_path for sample in data_batch['data_samples']]

    def after_train(self, runner):
        record = dict(
            losses=self.losses,
            images=[Path(image).name for image in self.images],
            stem_changed=not torch.equal(self.stem, self.before),
            wrapped=type(runner.model).__name__,
        )
        Path(runner.work_dir, f'{get_rank()}.json').write_text(json.dumps(record))


def main():
    config, work_dir, launcher, batch = sys.argv[1:]
    cfg = Config.fromfile(config)
    cfg.work_dir, cfg.launcher = work_dir, launcher
    cfg.train_dataloader.batch_size = int(batch)
    runner = build_runner(cfg)
    runner.register_hook(Recorder())
    runner.train()


if __name__ == '__main__':
    main()
