"""Evaluating a checkpoint: what is checked and set before MMEngine's Runner starts."""

from __future__ import annotations

from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS

from mmivit.apis.check_data import check_before_run
from mmivit.apis.config import (
    check_channels,
    check_paths,
    check_scope,
    innermost_evaluators,
    read_config,
    tested_dataset,
)
from mmivit.apis.models import check_weights, read_loadable
from mmivit.apis.pictures import draw_predictions
from mmivit.apis.runner import build_runner, warn
from mmivit.apis.settings import differing_settings
from mmivit.datasets.evaluators import wants_masks
from mmivit.datasets.loaders import find_loaders, loading
from mmivit.engine.label_maps import LabelMapHook
from mmivit.errors import LaunchError
from mmivit.registry import class_of


def evaluate(
    config: str,
    checkpoint: str,
    work_dir: str | None = None,
    out: str | None = None,
    show: bool = False,
    show_dir: str | None = None,
    wait_time: float = 2,
    tta: bool = False,
    cfg_options: dict | None = None,
    launcher: str = 'none',
) -> dict[str, float]:
    """Evaluate a checkpoint on the test set of a config.

    Args:
        config: path of an mmdet or mmseg config.
        checkpoint: path of the weights.
        work_dir: folder of logs and metrics; ``work_dirs/<config's name>`` if not given here or
            in the config.
        out: where predictions are kept: a .pkl file in detection; in segmentation a folder of label
            maps, as predict.py writes them.
        show: show each picture in a window.
        show_dir: folder below the work dir for pictures.
        wait_time: seconds between pictures.
        tta: test-time augmentation, as the config's ``tta_model`` and ``tta_pipeline`` say; of a
            detector with masks, boxes alone.
        cfg_options: what to override in the config, by dotted key.
        launcher: 'none', 'pytorch', 'slurm' or 'mpi'.

    Returns:
        The metrics, by name.

    Raises:
        LaunchError: data, checkpoint or a setting is missing or does not fit.
        CheckpointError: the checkpoint is unsafe, unreadable, or of something else.
    """
    cfg = read_config(config, work_dir, cfg_options, launcher)
    if out or show or show_dir or tta:
        check_scope(cfg)
    if out and cfg.default_scope == 'mmdet' and not out.endswith(('.pkl', '.pickle')):
        raise LaunchError(f'--out {out}: detections are written to a .pkl file')
    check_channels(cfg)
    check_paths(cfg, ('test',))
    doubts = check_before_run(cfg, ('test',))
    cfg.load_from = checkpoint
    loaded = read_loadable(checkpoint, 'checkpoint')
    doubts += differing_settings(cfg, checkpoint, loaded)
    if show or show_dir:
        draw_predictions(cfg, show, show_dir, wait_time)
    if tta:
        doubts += _augment(cfg, config)
    runner = build_runner(cfg)
    warn(doubts)
    check_weights(runner.model, checkpoint, loaded)
    if out and cfg.default_scope == 'mmdet':
        from mmdet.evaluation import DumpDetResults

        runner.test_evaluator.metrics.append(DumpDetResults(out_file_path=out))
    elif out:
        runner.register_hook(LabelMapHook(out))
    return runner.test()


def _augment(cfg: Config, config: str) -> list[str]:
    """Set test-time augmentation; what is to be said of it.

    Raises:
        LaunchError: the config defines none, or one that does not fit its model or images.
    """
    if not cfg.get('tta_model') or not cfg.get('tta_pipeline'):
        raise LaunchError(f'--tta: {config} defines no tta_model and tta_pipeline')
    pipelines = tested_dataset(cfg).get('pipeline') or [], cfg.tta_pipeline
    own, augmented = (loading(find_loaders(part, cfg.default_scope).image) for part in pipelines)
    if own != augmented:
        raise LaunchError(
            f'--tta: tta_pipeline loads images by {augmented}, the test pipeline by {own}; '
            'give both the same'
        )
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    doubts = _leave_masks_out(cfg) if cfg.default_scope == 'mmdet' else []
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    return doubts


def _leave_masks_out(cfg: Config) -> list[str]:
    """mmdet merges boxes alone, and asserts that there are no masks."""
    from mmdet.models import DetTTAModel

    if class_of(MODELS, cfg.tta_model, 'mmdet') is DetTTAModel:
        cfg.tta_model.type = 'mmivit.BoxTTAModel'
    judging = [node for node in innermost_evaluators(cfg.test_evaluator) if wants_masks(node)]
    for evaluator in judging:
        metrics = evaluator['metric']
        if isinstance(metrics, str) or set(metrics) == {'segm'}:
            raise LaunchError(
                '--tta: mmdet merges boxes alone, and test_evaluator.metric asks for masks alone'
            )
        evaluator['metric'] = [metric for metric in metrics if metric != 'segm']
    return ['--tta: mmdet merges boxes alone; masks are not evaluated.'] if judging else []
