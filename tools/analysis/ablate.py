"""What attention, interaction, landmarks, heads and tokens are worth, and iViT beside its peers.

    python tools/analysis/ablate.py --preset quick                      half an hour on 2 CPU cores
    python tools/analysis/ablate.py --preset full                       a GPU, or a long night
    python tools/analysis/ablate.py --preset quick --only attention heads

    python tools/analysis/ablate.py --preset quick --only photographs --photographs wheels

Trains from scratch on the hard drawn data; the last on the photographs of two packages, which it
does not fetch (tools/make_photographs.py says how to get them). Killed, it goes on where it was
when started again.
"""

import argparse
from pathlib import Path

from mmivit.apis.command import errors_told
from mmivit.experiments.ablation import GROUPS, PRESETS, ablate
from mmivit.experiments.ablation_report import write_ablation_report

CONFIGS = Path(__file__).parents[2] / 'configs'


def main() -> None:
    parser = argparse.ArgumentParser(description='Ablations from scratch on the hard drawn data.')
    parser.add_argument('--preset', choices=PRESETS, required=True, help='how much is trained')
    parser.add_argument(
        '--out',
        type=Path,
        help='data, runs.jsonl, ablation.md, ablation.png; work_dirs/ablate_PRESET if not given',
    )
    parser.add_argument(
        '--only',
        nargs='+',
        choices=GROUPS,
        default=[group for group in GROUPS if group != 'photographs'],
        metavar='GROUP',
        help=f'{", ".join(GROUPS)}; all but photographs if not given',
    )
    parser.add_argument(
        '--photographs',
        type=Path,
        metavar='WHEELS',
        help='folder where the wheels of elpv-dataset and deepforest were unpacked, for the group '
        'photographs',
    )
    parser.add_argument(
        '--seeds', type=int, help="runs of everything; the preset's numbers if not given"
    )
    parser.add_argument(
        '--jobs', type=int, default=0, help='runs at a time; as many as CPU cores, up to 8'
    )
    args = parser.parse_args()
    out = args.out or Path(f'work_dirs/ablate_{args.preset}')
    with errors_told(ValueError, OSError, RuntimeError):
        log, rows = ablate(
            out,
            CONFIGS,
            PRESETS[args.preset],
            args.only,
            args.jobs,
            args.seeds,
            args.photographs,
        )
    tables = write_ablation_report(log, rows, out)
    print(f'{tables}\n{out / "ablation.md"}, .png, {log.path.name}')


if __name__ == '__main__':
    main()
