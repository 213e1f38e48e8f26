"""Train a detector or segmentor: the flags of mmdet's and mmseg's own tools/train.py.

python tools/train.py configs/mask_rcnn_ivit.py

On data of your own run tools/check_data.py first.
"""

import argparse
import os
import sys

from mmengine.config import DictAction

from mmivit.apis.launch import train
from mmivit.errors import CheckpointError, LaunchError, TrainingError


def main() -> None:
    parser = argparse.ArgumentParser(
        description='Train a detector or segmentor.',
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
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='override settings of the config: key.subkey=value, lists as key="[a,b]"',
    )
    parser.add_argument('--launcher', choices=('none', 'pytorch', 'slurm', 'mpi'), default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    args = parser.parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    try:
        train(
            args.config,
            work_dir=args.work_dir,
            amp=args.amp,
            auto_scale_lr=args.auto_scale_lr,
            resume=args.resume,
            cfg_options=args.cfg_options,
            launcher=args.launcher,
        )
    except (LaunchError, CheckpointError, TrainingError) as error:
        sys.exit(f'train: {error}')


if __name__ == '__main__':
    main()
