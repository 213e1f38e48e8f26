"""What does distillation without labels bring, and how? The figures of docs/pretraining.md.

    python tools/analysis/distill.py work_dirs/distill_drawn                 on drawn images
    python tools/analysis/distill.py work_dirs/distill_photographs --photographs wheels

The second takes the photographs of two packages, which it does not fetch (tools/make_photographs.py
says how to get them). Killed, either goes on where it was when started again.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from mmivit.apis.command import errors_told
from mmivit.experiments.distillation import DRAWN, PHOTOGRAPHS, distil
from mmivit.experiments.distillation_report import write_distillation_report
from mmivit.experiments.warm_start import drawn, photographs

CONFIGS = Path(__file__).parents[2] / 'configs'
LENGTHS = {
    'pretrain': "of the teacher's training",
    'distil': 'of distillation',
    'downstream': 'of segmentation and of detection, none if 0',
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'folder', type=Path, help='data, weights, runs.jsonl, distillation.md, .png'
    )
    parser.add_argument(
        '--photographs',
        type=Path,
        metavar='WHEELS',
        help='folder where the wheels of elpv-dataset and deepforest were unpacked',
    )
    parser.add_argument('--seeds', type=int, nargs='+', default=(0, 1, 2))
    for name, what in LENGTHS.items():
        defaults = f'{getattr(DRAWN, name)}, {getattr(PHOTOGRAPHS, name)} on photographs'
        parser.add_argument(f'--{name}', type=int, help=f'iterations {what} ({defaults})')
    parser.add_argument(
        '--jobs', type=int, default=0, help='runs at a time; as many as CPU cores, up to 8'
    )
    args = parser.parse_args()
    given = {name: getattr(args, name) for name in LENGTHS if getattr(args, name) is not None}
    budget = replace(PHOTOGRAPHS if args.photographs else DRAWN, **given)
    with errors_told(ValueError, OSError, RuntimeError):
        if args.photographs:
            data = photographs(args.photographs, args.folder, budget)
        else:
            data = drawn(args.folder, budget)
        log, runs = distil(args.folder, CONFIGS, data, budget, args.seeds, args.jobs)
    title = 'Photographs' if args.photographs else 'Drawn images'
    print(write_distillation_report(log, runs, args.folder, title))
    print(f'{args.folder / "distillation.md"}, .png, {log.path.name}')


if __name__ == '__main__':
    main()
