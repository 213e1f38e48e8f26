"""Train a detector, a segmentor or a distilled iViT: the flags of mmdet's and mmseg's train.py.

python tools/train.py configs/mask_rcnn_ivit.py

On data of your own run tools/check_data.py first.
"""

import argparse

from mmivit.apis.command import (
    add_cfg_options,
    add_launcher,
    add_verbose,
    errors_told,
    parse_launched,
    quietly,
)
from mmivit.apis.train import train


def main() -> None:
    parser = argparse.ArgumentParser(
        description='Train a detector, a segmentor or a distilled iViT.',
        epilog='python tools/check_data.py CONFIG looks for faults in the data first.',
    )
    parser.add_argument('config', help='config file')
    parser.add_argument('--work-dir', help='folder of logs and checkpoints')
    parser.add_argument('--amp', action='store_true', help='mixed precision')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help="scale the learning rate from the config's base batch to the actual total batch",
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='go on from this checkpoint, or, without a name, from the latest whole one there is',
    )
    add_cfg_options(parser)
    add_verbose(parser)
    add_launcher(parser)
    args = parse_launched(parser)
    with errors_told(), quietly(args):
        train(**vars(args))


if __name__ == '__main__':
    main()
