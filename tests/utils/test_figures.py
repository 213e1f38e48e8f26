"""Figures are written whole or not at all."""

import pytest
from matplotlib.figure import Figure

from mmivit.utils.figures import save_figure


def test_a_figure_is_png_whatever_its_name(tmp_path):
    save_figure(Figure((1, 1)), tmp_path / 'new' / 'figure.out', dpi=20)
    assert [path.name for path in (tmp_path / 'new').iterdir()] == ['figure.out']
    assert (tmp_path / 'new' / 'figure.out').read_bytes().startswith(b'\x89PNG')


def test_nothing_is_left_of_a_figure_that_fails(tmp_path):
    with pytest.raises(TypeError, match='no_such_option'):
        save_figure(Figure((1, 1)), tmp_path / 'figure.png', no_such_option=1)
    assert not list(tmp_path.iterdir())
