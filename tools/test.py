"""Evaluate a checkpoint: the flags of mmdet's and mmseg's own tools/test.py.

python tools/test.py configs/mask_rcnn_ivit.py work_dirs/mask_rcnn_ivit/epoch_12.pth
"""

import argparse

from mmengine.dist import is_main_process

from mmivit.apis.command import (
    add_cfg_options,
    add_launcher,
    add_verbose,
    errors_told,
    parse_launched,
    quietly,
)
from mmivit.apis.test import evaluate


def main() -> None:
    parser = argparse.ArgumentParser(
        description='Evaluate a detector, a segmentor or a distilled iViT.'
    )
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--work-dir', help='folder of logs and metrics')
    parser.add_argument(
        '--out',
        help='keep predictions: a .pkl file (detection), or a folder of label maps, whose values '
        'are class indices from 0 (segmentation)',
    )
    parser.add_argument('--show', action='store_true', help='show predictions in a window')
    parser.add_argument('--show-dir', help='folder for pictures of the predictions')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds between pictures')
    parser.add_argument('--tta', action='store_true', help='test-time augmentation')
    add_cfg_options(parser)
    add_verbose(parser)
    add_launcher(parser)
    args = parse_launched(parser)
    with errors_told(), quietly(args):
        metrics = evaluate(**vars(args))
    if is_main_process():
        for name, value in metrics.items():
            print(f'{name:<24} {_shown(value)}')


def _shown(value: object) -> str:
    """A metric's value, which may also be an array, a text or None."""
    try:
        return f'{value:.4f}'
    except (TypeError, ValueError):
        return str(value)


if __name__ == '__main__':
    main()
