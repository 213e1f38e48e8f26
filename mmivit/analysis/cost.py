"""What a model costs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmivit.apis.config import check_scope, read_config
from mmivit.apis.models import build_model
from mmivit.errors import LaunchError
from mmivit.models.ivit import ARCHITECTURES, IViT
from mmivit.utils.tables import markdown_table

try:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    counted_attention = partial(sdpa_kernel, SDPBackend.MATH)
except ImportError:  # torch before 2.3
    from torch.backends.cuda import sdp_kernel

    counted_attention = partial(sdp_kernel, enable_flash=False, enable_mem_efficient=False)

# Height and width in pixels, by a config's default_scope, at which the field counts a whole model.
SIZES = {'mmdet': (800, 1280), 'mmseg': (512, 2048)}


class Cost(NamedTuple):
    """Parameters, and multiply-accumulates of one forward pass."""

    parameters: int
    macs: int


def count_cost(model: nn.Module, forward: Callable[[], object]) -> Cost:
    """Count what a forward pass costs, attention included.

    Matrix products and convolutions count, elementwise work does not, as is the custom. Fused
    attention is split into its products meanwhile, because counters see nothing in it.

    Args:
        model: the module whose parameters count.
        forward: runs it once.
    """
    model.eval()
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counted_attention(), counter:
        forward()
    parameters = sum(p.numel() for p in model.parameters())
    return Cost(parameters, counter.get_total_flops() // 2)


def architecture_costs(size: tuple[int, int], **options) -> dict[str, Cost]:
    """Cost of every architecture's backbone for one image of (height, width) pixels.

    Counted on the meta device: nothing is computed.

    Args:
        size: height and width in pixels.
        options: further arguments of :class:`IViT`.
    """
    costs = {}
    with torch.device('meta'):
        for arch in ARCHITECTURES:
            model = IViT(arch, **options)
            image = torch.empty(1, 3, *size)
            costs[arch] = count_cost(model, lambda model=model, image=image: model(image))
    return costs


def config_cost(cfg: Config, size: tuple[int, int] | None = None, **options) -> Cost:
    """Cost of a config's whole model for one image; no data set and no weights are needed.

    Segmentors are counted on the meta device, where nothing is computed, without the auxiliary
    head's MACs, which only training spends. A detector chooses its proposals by their scores, so
    it computes, from random weights and a random image, and what its heads cost depends on how
    many proposals there are: here Mask R-CNN's box head sees test_cfg.rpn.max_per_img of them
    (1000) and its mask head the first 100, as in mmdet's own counter.

    Args:
        cfg: a config of mmdet or mmseg.
        size: height and width in pixels; that of :data:`SIZES` if not given.
        options: further arguments of the backbone, in place of the config's.

    Raises:
        LaunchError: the config's default_scope is neither mmdet nor mmseg.
    """
    scope = check_scope(cfg)
    size = size or SIZES[scope]
    device = 'cpu' if scope == 'mmdet' else 'meta'
    cfg = copy.deepcopy(cfg)
    cfg.model.backbone.update(options)
    return count_cost(*build_pass(cfg, size, device))


def build_pass(
    cfg: Config, size: tuple[int, int], device: str
) -> tuple[nn.Module, Callable[[], object]]:
    """A config's whole model, in evaluation mode with random weights, and a forward pass of it.

    Args:
        cfg: a config of mmdet or mmseg.
        size: height and width of the one random image, pixels.
        device: where both are made.

    Raises:
        LaunchError: the config's default_scope is neither mmdet nor mmseg.
    """
    scope = check_scope(cfg)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_model(cfg, device)
        image = torch.rand(1, 3, *size, device=device)
    arguments = (image,)
    if scope == 'mmdet':
        from mmdet.structures import DetDataSample

        shapes = ('img_shape', 'pad_shape', 'batch_input_shape', 'ori_shape')
        metainfo = dict.fromkeys(shapes, size)
        arguments += ([DetDataSample(metainfo={**metainfo, 'scale_factor': (1.0, 1.0)})],)

    def forward() -> object:
        with torch.device(device), DefaultScope.overwrite_default_scope(scope):
            return model(*arguments, mode='tensor')

    return model, forward


def architectures_table(sizes: Sequence[tuple[int, int]], **options) -> str:
    """Markdown: what every architecture's backbone costs for images of some sizes.

    Args:
        sizes: height and width, pixels.
        options: further arguments of :class:`IViT`.
    """
    costs = [architecture_costs(size, **options) for size in sizes]
    titles = (f'MACs at {height} x {width}' for height, width in sizes)
    rows = (
        [arch, _millions(cost.parameters), *(_billions(column[arch].macs) for column in costs)]
        for arch, cost in costs[0].items()
    )
    return markdown_table(['arch', 'parameters', *titles], rows)


def configs_table(paths: Sequence[str], sizes: Sequence[tuple[int, int]] = (), **options) -> str:
    """Markdown: what the whole models of configs cost for images of some sizes.

    Args:
        paths: of configs of mmdet or mmseg.
        sizes: height and width, pixels; that of :data:`SIZES` if not given.
        options: further arguments of the backbones, in place of the configs'.

    Raises:
        LaunchError: there is no such config, or its default_scope is neither mmdet nor mmseg.
    """
    rows = []
    for path in paths:
        cfg = read_config(path)
        for height, width in sizes or [SIZES[check_scope(cfg)]]:
            cost = config_cost(cfg, (height, width), **options)
            macs = _billions(cost.macs)
            rows.append([path, f'{height} x {width}', _millions(cost.parameters), macs])
    return markdown_table(['config', 'image', 'parameters', 'MACs'], rows, names=2)


def build_timm(name: str, size: tuple[int, int], device: str) -> nn.Module:
    """A model of timm's registry for images of (height, width) pixels, random weights, no head.

    Raises:
        LaunchError: timm has no such model.
    """
    import timm

    if not timm.is_model(name):
        raise LaunchError(f'timm has no model {name!r}; see timm.list_models()')
    with torch.device(device):
        model = timm.create_model(name, num_classes=0)
        if hasattr(model, 'set_input_size'):  # vision transformers take one size
            model.set_input_size(size)
    return model.eval()


def timm_table(names: Sequence[str], sizes: Sequence[tuple[int, int]]) -> str:
    """Markdown: what models of timm's registry cost, without their heads, for one image.

    Args:
        names: such as 'vit_small_patch16_224_imhsa'.
        sizes: height and width, pixels.

    Raises:
        LaunchError: timm has no such model.
    """
    rows = []
    for name in names:
        costs = []
        for size in sizes:
            model, image = build_timm(name, size, 'meta'), torch.empty(1, 3, *size, device='meta')
            costs.append(count_cost(model, lambda model=model, image=image: model(image)))
        rows.append([name, _millions(costs[0].parameters), *(_billions(c.macs) for c in costs)])
    titles = (f'MACs at {height} x {width}' for height, width in sizes)
    return markdown_table(['model', 'parameters', *titles], rows)


def _millions(count: int) -> str:
    return f'{count / 1e6:.1f} M'


def _billions(count: int) -> str:
    return f'{count / 1e9:.1f} G'
