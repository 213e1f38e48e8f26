"""What does distillation without labels bring, and how? The figures of docs/pretraining.md.

    python tools/analysis/distill.py work_dirs/distill_drawn                 on drawn images
    python tools/analysis/distill.py work_dirs/distill_photographs --photographs wheels

The second takes the photographs of two packages, which it does not fetch (tools/make_photographs.py
says how to get them). Killed, either goes on where it was when started again.
"""

from pathlib import Path

from mmivit.apis.command import errors_told
from mmivit.experiments.command import read_command
from mmivit.experiments.data import write_data
from mmivit.experiments.distillation import DRAWN, PHOTOGRAPHS, distil
from mmivit.experiments.distillation_report import write_distillation_report

CONFIGS = Path(__file__).parents[2] / 'configs'
LENGTHS = {
    'pretrain': "of the teacher's training",
    'distil': 'of distillation',
    'downstream': 'of segmentation and of detection, none if 0',
}


def main() -> None:
    args = read_command(__doc__, 'distillation.md, .png', LENGTHS, DRAWN, PHOTOGRAPHS)
    with errors_told(ValueError, OSError, RuntimeError):
        data = write_data(args.folder, args.budget, args.photographs)
        log, runs = distil(args.folder, CONFIGS, data, args.budget, args.seeds, args.jobs)
    print(write_distillation_report(log, runs, args.folder, args.title))
    print(f'{args.folder / "distillation.md"}, .png, {log.path.name}')


if __name__ == '__main__':
    main()
