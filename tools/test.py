"""Evaluate a checkpoint: the flags of mmdet's and mmseg's own tools/test.py.

python tools/test.py configs/mask_rcnn_ivit.py work_dirs/mask_rcnn_ivit/epoch_12.pth
"""

import argparse
import os
import sys

from mmengine.config import DictAction
from mmengine.dist import is_main_process

from mmivit.apis.launch import evaluate
from mmivit.errors import CheckpointError, LaunchError


def main() -> None:
    parser = argparse.ArgumentParser(description='Evaluate a detector or segmentor.')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--work-dir', help='folder of logs and metrics')
    parser.add_argument(
        '--out', help='keep predictions: a .pkl file (detection) or a folder (segmentation)'
    )
    parser.add_argument('--show', action='store_true', help='show predictions in a window')
    parser.add_argument('--show-dir', help='folder for pictures of the predictions')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds between pictures')
    parser.add_argument('--tta', action='store_true', help='test-time augmentation')
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
        metrics = evaluate(
            args.config,
            args.checkpoint,
            work_dir=args.work_dir,
            out=args.out,
            show=args.show,
            show_dir=args.show_dir,
            wait_time=args.wait_time,
            tta=args.tta,
            cfg_options=args.cfg_options,
            launcher=args.launcher,
        )
    except (LaunchError, CheckpointError) as error:
        sys.exit(f'test: {error}')
    if is_main_process():
        for name, value in metrics.items():
            print(f'{name:<24}{value:.4f}')


if __name__ == '__main__':
    main()
