"""Convert weights to iViT's: CAFormer, timm, detectors, segmentors; and back to timm.

python tools/convert_weights.py timm://caformer_s18.sail_in22k_ft_in1k caformer_s18.pth
python tools/convert_weights.py work_dirs/mask_rcnn_ivit/epoch_12.pth backbone.safetensors
"""

import argparse

from mmivit.apis.command import add_force, errors_told
from mmivit.models.attention import ATTENTIONS
from mmivit.weights.converters import TARGETS, convert_file
from mmivit.weights.kinds import SOURCES


def main() -> None:
    parser = argparse.ArgumentParser(description="Convert weights to iViT's.")
    parser.add_argument('src', help='a file (.pth, .safetensors), a URL, or timm://NAME')
    parser.add_argument('dst', help='the file to write, .pth or .safetensors')
    parser.add_argument('--source', choices=SOURCES, help='what SRC is; recognised by default')
    parser.add_argument('--target', choices=TARGETS, default=TARGETS[0], help='what DST is for')
    parser.add_argument('--arch', help='refuse any other architecture than this')
    parser.add_argument('--attention', choices=ATTENTIONS, help="SRC's own by default")
    parser.add_argument('--in-channels', type=int, help="of the image; SRC's own by default")
    parser.add_argument('--head-dim', type=int, help="width of SRC's heads, if it does not tell")
    parser.add_argument(
        '--drop',
        action='append',
        default=[],
        metavar='PATTERN',
        help='names of SRC to leave out; may be given several times',
    )
    parser.add_argument(
        '--paper-start',
        action='store_true',
        help="start iMHSA's landmarks as the paper has them, which loses what SRC has learnt",
    )
    parser.add_argument('--dry-run', action='store_true', help='report, and write nothing')
    add_force(parser, 'DST')
    args = vars(parser.parse_args())
    src, dst = args.pop('src'), args.pop('dst')
    with errors_told(OSError, ValueError):
        report = convert_file(src, dst, **args)
    print(report.table())
    print(f'{dst}: {"not written (--dry-run)" if args["dry_run"] else "written"}')


if __name__ == '__main__':
    main()
