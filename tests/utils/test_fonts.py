"""Texts in any script, whichever fonts and OpenCV are installed."""

import matplotlib.font_manager
import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen

from mmivit.apis.pictures import draw_legend
from mmivit.utils import fonts

CIRCLE = '圆'


def write_font(path, character):
    """A font with one letter, a black square as large as the em."""
    pen = TTGlyphPen(None)
    for i, corner in enumerate([(0, 0), (0, 1000), (1000, 1000), (1000, 0)]):
        (pen.lineTo if i else pen.moveTo)(corner)
    pen.closePath()
    font = FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder(['.notdef', 'square'])
    font.setupCharacterMap({ord(character): 'square'})
    font.setupGlyf({'.notdef': TTGlyphPen(None).glyph(), 'square': pen.glyph()})
    font.setupHorizontalMetrics(dict.fromkeys(['.notdef', 'square'], (1000, 0)))
    font.setupHorizontalHeader(ascent=1000, descent=0)
    font.setupNameTable(dict(familyName='One-Letter', styleName='Regular'))
    font.setupOS2()
    font.setupPost()
    font.save(path)
    return str(path)


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """Nothing is installed but what comes with matplotlib, and OpenCV knows ASCII alone."""
    listed = matplotlib.font_manager.fontManager.ttflist
    own = [font for font in listed if 'mpl-data' in font.fname]
    monkeypatch.setattr(matplotlib.font_manager.fontManager, 'ttflist', own)
    monkeypatch.setattr(matplotlib.font_manager, 'findSystemFonts', list)
    monkeypatch.setattr(fonts, '_opencv_has', str.isascii)
    monkeypatch.setattr(fonts, '_told', set())
    fonts._find_families.cache_clear()
    yield
    fonts._find_families.cache_clear()


def black(text):
    """How much of a text's line in a legend is black."""
    legend = draw_legend(240, {text: (255, 255, 255)})
    assert legend.shape[0] == 240
    return (legend.max(-1) < 50).sum()


def test_letters_of_matplotlibs_own_font_need_no_other(log):
    assert fonts.find_families('круг 12.5%, κύκλος') == ((), frozenset())
    assert black('круг') > 30
    assert not log


@pytest.mark.filterwarnings('ignore:Glyph')
def test_what_no_font_has_is_said_once(log):
    for _ in range(2):
        black(f'{CIRCLE} a')
    (line,) = log
    assert f'No installed font has {CIRCLE}: ' in line
    assert 'apt install fonts-noto-cjk' in line


def test_a_font_that_was_just_installed_is_found_and_used(tmp_path, monkeypatch, log):
    path = write_font(tmp_path / 'one.ttf', CIRCLE)
    monkeypatch.setattr(matplotlib.font_manager, 'findSystemFonts', lambda: [path])
    assert fonts.find_families(CIRCLE) == (('One-Letter',), frozenset())
    assert black(f'{CIRCLE} a') > 120  # pixels of an em of 12 x 12
    assert not log


def test_opencv_draws_what_no_font_has(monkeypatch, log):
    monkeypatch.setattr(fonts, '_opencv_has', lambda character: True)
    drawn = []

    def draw(text, size):
        drawn.append((text, size))
        return np.full((20, 30), 255, np.uint8)

    monkeypatch.setattr(fonts, 'opencv_text', draw)
    assert 500 < black(f'{CIRCLE} $5$') < 700
    assert drawn == [(f'{CIRCLE} $5$', pytest.approx(12))]
    assert not log


def test_dollars_are_no_mathematics():
    assert black(r'$\nonsense$') > 60


def test_a_damaged_font_is_passed_over(tmp_path, monkeypatch, log):
    (tmp_path / 'one.ttf').write_bytes(b'no font')
    monkeypatch.setattr(
        matplotlib.font_manager, 'findSystemFonts', lambda: [str(tmp_path / 'one.ttf')]
    )
    assert fonts.find_families(CIRCLE) == ((), frozenset(CIRCLE))
