"""Is a warm start from ordinary attention worth it? The tables and curves of docs/warm_start.md.

    python tools/analysis/warm_start.py work_dirs/warm_start               on drawn images
    python tools/analysis/warm_start.py work_dirs/warm_photographs --photographs wheels

The second takes the photographs of two packages, which it does not fetch (tools/make_photographs.py
says how to get them). Killed, either goes on where it was when started again.
"""

from pathlib import Path

from mmivit.apis.command import errors_told
from mmivit.experiments.command import read_command
from mmivit.experiments.data import write_data
from mmivit.experiments.warm_start import DRAWN, PHOTOGRAPHS, warm_start
from mmivit.experiments.warm_start_report import write_warm_start_report

CONFIGS = Path(__file__).parents[2] / 'configs'
LENGTHS = {
    'pretrain': 'of classification with MHSA',
    'continued': 'of further classification',
    'downstream': 'of segmentation and of detection',
}


def main() -> None:
    args = read_command(__doc__, 'warm_start.md, .png', LENGTHS, DRAWN, PHOTOGRAPHS)
    with errors_told(ValueError, OSError, RuntimeError):
        data = write_data(args.folder, args.budget, args.photographs)
        log, runs = warm_start(args.folder, CONFIGS, data, args.budget, args.seeds, args.jobs)
    print(write_warm_start_report(log, runs, args.folder, args.title))
    print(f'{args.folder / "warm_start.md"}, .png, {log.path.name}')


if __name__ == '__main__':
    main()
