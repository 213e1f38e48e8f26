"""What draws predictions: the visualiser, a legend and, in a test, the hook that calls them."""

from __future__ import annotations

from functools import cache

import numpy as np
from mmengine.config import Config, ConfigDict
from mmengine.registry import HOOKS, VISBACKENDS, VISUALIZERS
from mmengine.visualization import LocalVisBackend, Visualizer

from mmivit.apis.config import tested_dataset
from mmivit.datasets.loaders import decodes_as_stock, find_loaders
from mmivit.errors import LaunchError
from mmivit.registry import class_of
from mmivit.utils.canvas import QuickCanvas
from mmivit.utils.fonts import AnyScript

MOST_WIDTH = 2**14  # pixels of a legend; longer names are cut off

# By scope: the hook, the stock visualiser, ours in its place.
DRAWERS = {
    'mmdet': ('DetVisualizationHook', 'DetLocalVisualizer', 'mmivit.DetVisualizer'),
    'mmseg': ('SegVisualizationHook', 'SegLocalVisualizer', 'mmivit.SegVisualizer'),
}


def set_visualizer(cfg: Config) -> None:
    """Set ours, which draws any script, where a config has the stock visualiser or none."""
    _, stock, ours = DRAWERS[cfg.default_scope]
    if not cfg.get('visualizer'):
        cfg.visualizer = ConfigDict(type=ours, name='visualizer')
    elif class_of(VISUALIZERS, cfg.visualizer, cfg.default_scope).__name__ == stock:
        cfg.visualizer.type = ours


def draw_predictions(cfg: Config, show: bool, show_dir: str | None, wait_time: float) -> None:
    """Set that a test draws each prediction, whether or not the config has a hook that does.

    Args:
        cfg: of mmdet or mmseg.
        show: show each picture in a window.
        show_dir: folder for pictures.
        wait_time: seconds between pictures.

    Raises:
        LaunchError: the config's images are of a format that the hooks do not read.
    """
    scope = cfg.default_scope
    loader = find_loaders(tested_dataset(cfg).get('pipeline') or [], scope).image
    if not decodes_as_stock(loader):
        raise LaunchError(
            f'--show, --show-dir: {scope} draws on files that OpenCV reads, and images are loaded '
            f'by {type(loader).__name__} here; python tools/predict.py draws on what that loads'
        )
    set_visualizer(cfg)
    name = DRAWERS[scope][0]
    kind = class_of(HOOKS, dict(type=name), scope)
    custom = [
        h for h in cfg.get('custom_hooks') or [] if issubclass(class_of(HOOKS, h, scope), kind)
    ]
    if not cfg.get('default_hooks'):
        cfg.default_hooks = ConfigDict()
    if not custom and not cfg.default_hooks.get('visualization'):
        cfg.default_hooks.visualization = ConfigDict(type=name)
    hook = cfg.default_hooks.get('visualization') or custom[0]
    hook.update(draw=True, show=show, wait_time=wait_time)
    if scope == 'mmdet' and show_dir:
        hook.test_out_dir = show_dir
    elif scope == 'mmseg':
        hook.interval = 1  # else every 50th batch
        # The hook asks for the iteration of the training, for which MMEngine would build it: its
        # data would have to be there, and the pictures would get its names of classes.
        cfg.update(dict.fromkeys(('train_dataloader', 'train_cfg', 'optim_wrapper')))
        cfg.param_scheduler = None
    if scope == 'mmseg' and show_dir:
        cfg.visualizer.save_dir = show_dir
        backends = cfg.visualizer.get('vis_backends') or []
        backends = [backends] if isinstance(backends, dict) else list(backends)
        if not any(class_of(VISBACKENDS, node, scope) is LocalVisBackend for node in backends):
            backends.append(ConfigDict(type='LocalVisBackend'))
        cfg.visualizer.vis_backends = backends


class _Canvas(AnyScript, QuickCanvas, Visualizer):
    """A visualiser for texts alone."""


@cache
def _canvas() -> _Canvas:
    return _Canvas()


def draw_legend(height: int, entries: dict[str, tuple[int, int, int]]) -> np.ndarray:
    """A legend (height, width, 3), RGB; text grows with the height and shrinks for many entries.

    Args:
        height: pixels.
        entries: red, green, blue of each text.
    """
    line = min(height / 12, (height - 8) / max(len(entries), 1))
    size, left, box = 0.6 * line, int(0.3 * line), max(1, int(0.7 * line))  # pixels
    widest = max(map(len, entries), default=0) * size  # no letter is wider than high
    legend = np.full((height, int(min(widest + 2 * line, MOST_WIDTH)), 3), 255, np.uint8)
    tops = [int(4 + i * line) for i in range(len(entries))]
    for top, colour in zip(tops, entries.values()):
        legend[top : top + box, left : left + box] = colour
    canvas = _canvas()
    canvas.set_image(legend)
    canvas.draw_texts(
        list(entries),
        np.array([(1.4 * line, top + box / 2) for top in tops]).reshape(-1, 2),
        font_sizes=size * 72 / canvas.dpi,
        vertical_alignments='center',
        colors='k',
    )
    drawn = canvas.get_image()
    used = np.flatnonzero((drawn.min(0) != 255).any(1))
    return drawn[:, : used.max() + left + 1 if len(used) else 1]
