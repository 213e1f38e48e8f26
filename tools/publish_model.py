"""Strip a trained checkpoint to what others need, and name it by its hash.

python tools/publish_model.py work_dirs/mask_rcnn_ivit/epoch_12.pth mask_rcnn_ivit_coco_1x.pth
"""

import argparse

from mmivit.apis.command import add_force, errors_told
from mmivit.weights.publish import publish


def main() -> None:
    parser = argparse.ArgumentParser(description='Strip a trained checkpoint for publication.')
    parser.add_argument('src', help='the checkpoint')
    parser.add_argument('dst', help='name.pth; name-HASH.pth is written')
    add_force(parser)
    args = parser.parse_args()
    with errors_told(OSError):
        written = publish(args.src, args.dst, args.force)
    print(f'{written}: {written.stat().st_size / 2**20:.1f} MiB')
    print("For the config's row in configs/metafile.yml, once the file is where URL says:")
    print(f'  Weights: URL/{written.name}')


if __name__ == '__main__':
    main()
