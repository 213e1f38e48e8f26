"""Maps lie on the right pixels of the image."""

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mmivit.analysis.map_drawing import Panel, View, _draw_map, draw
from mmivit.models import IViT


def padded(size, scale, divisor=32):
    """A view of an image of (height, width) whose input was resized and padded."""
    height, width = (round(side * scale) for side in size)
    inputs = torch.zeros(1, 3, height + -height % divisor, width + -width % divisor)
    return View(np.zeros((*size, 3), np.uint8), inputs, (width / size[1], height / size[0]))


@pytest.mark.parametrize('size', [(31, 64), (35, 77), (112, 137), (131, 203), (66, 224)])
def test_a_token_is_drawn_where_it_looks(size):
    """The pixels on which a token depends are centred in its cell: measured on the model."""
    torch.manual_seed(0)
    model = IViT('nano').eval()
    view = View(np.zeros((*size, 3), np.uint8), torch.zeros(1, 3, *size), (1.0, 1.0))
    # Dense and positive weights all the way: the input's gradient shows the receptive field.
    first = torch.nn.Conv2d(1, 1, 7, 4, 2, bias=False)
    next_ = torch.nn.Conv2d(1, 1, 3, 2, 1, bias=False)
    for ours, like in ((first, model.stem.conv), (next_, model.stages[2].downsample.conv)):
        assert (ours.kernel_size, ours.stride, ours.padding) == (
            like.kernel_size, like.stride, like.padding,
        )  # fmt: skip
        torch.nn.init.ones_(ours.weight)
    image = torch.zeros(1, 1, *size, requires_grad=True)
    tokens = next_(next_(first(image)))
    for _ in range(2):  # stages 3 and 4
        rows, columns = tokens.shape[2:]
        x, y = view.edges(rows, columns)
        assert (len(x), len(y)) == (columns + 1, rows + 1)
        assert (x[-1], y[-1]) == size[::-1]
        assert (np.diff(x) > 0).all()
        assert (np.diff(y) > 0).all()
        for row in range(1, rows - 1):
            for column in range(1, columns - 1):
                (field,) = torch.autograd.grad(tokens[0, 0, row, column], image, retain_graph=True)
                seen = field[0, 0].nonzero().double().mean(0).tolist()
                assert view.token((round(seen[1]), round(seen[0])), (rows, columns)) == (
                    row,
                    column,
                )
                assert seen[0] + 0.5 == pytest.approx((y[row] + y[row + 1]) / 2, abs=1.5)
        tokens = next_(tokens)


@pytest.mark.parametrize('scale', [1, 0.6, 2])
@pytest.mark.parametrize('size', [(131, 203), (224, 160), (90, 301)])
def test_a_peak_is_drawn_at_its_token(size, scale):
    view = padded(size, scale)
    with torch.no_grad():
        tokens = IViT('nano', out_indices=(2,))(view.inputs)[0].shape[2:]
    for point in [(0, 0), (size[1] // 2, size[0] // 3), (size[1] - 1, size[0] - 1)]:
        row, column = view.token(point, tuple(tokens))
        peaked = np.zeros(tokens)
        peaked[row, column] = 1
        # One pixel of the figure for each of the image.
        figure = Figure((size[1] / 100, size[0] / 100), dpi=100)
        axes = figure.add_axes((0, 0, 1, 1), xlim=(0, size[1]), ylim=(size[0], 0))
        axes.set_axis_off()
        _draw_map(axes, view, Panel('', point, peaked))
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        drawn = np.asarray(canvas.buffer_rgba())[..., :3].astype(int)
        yellow = np.array(matplotlib.colormaps['viridis'](1.0)[:3]) * 255
        lit = np.abs(drawn - (0.65 * yellow + 0.35 * 255)).max(-1) < 8
        nearest, apart = [], []
        for side, n, factor in zip(size, tokens, view.scale[::-1]):
            pixels = (np.arange(side) + 0.5) * factor
            distances = np.abs(pixels[:, None] - (16 * np.arange(n) + 1.5))
            ordered = np.sort(distances, 1)
            nearest.append(distances.argmin(1))
            # On a border a pixel may go to either side.
            apart.append(ordered[:, 1] - ordered[:, 0] > 2 * factor)
        expected = (nearest[0] == row)[:, None] & (nearest[1] == column)
        clear = apart[0][:, None] & apart[1]
        assert expected[point[1], point[0]]
        assert (lit == expected)[clear].all()


def test_colours_ignore_the_padding_and_show_signs():
    view = padded((64, 64), 1, divisor=128)
    axes = Figure().subplots()
    weights = np.ones((8, 8))
    weights[6:] = 100  # below the image
    assert _draw_map(axes, view, Panel('', (0, 0), weights)).get_clim() == (0, 1)
    weights[0, 0] = -3
    assert _draw_map(axes, view, Panel('', (0, 0), weights)).get_clim() == (-3, 3)
    assert _draw_map(axes, view, Panel('', (0, 0), 0 * weights)).get_clim()[0] == 0


def test_a_picture_is_drawn_at_any_shape():
    for size in ((40, 900), (900, 40)):
        panel = Panel('head', (5, 5), np.random.default_rng(0).random((-(-size[0] // 32), 2)))
        view = View(np.zeros((*size, 3), np.uint8), torch.zeros(1, 3, *size), (1.0, 1.0))
        canvas = FigureCanvasAgg(draw(view, 'a title', [[panel, None]]))
        canvas.draw()
        assert np.asarray(canvas.buffer_rgba()).std() > 0
