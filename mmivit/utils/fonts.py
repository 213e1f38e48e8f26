"""Texts in any script: with matplotlib and the fonts that are installed, else with OpenCV's own.

OpenCV 5 brings a font with Chinese, Japanese and Korean along; OpenCV 4 knows ASCII alone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from mmengine.logging import print_log

if TYPE_CHECKING:
    from matplotlib.font_manager import FontEntry
    from matplotlib.text import Text

BASE = 'DejaVu Sans'  # matplotlib's own: Latin, Greek, Cyrillic, Arabic and others
OPENCV_FONT = cv2.FONT_HERSHEY_SIMPLEX
OPENCV_EM = 27  # pixels at scale 1, of letters as wide as those of BASE
UNKNOWN = '\uffff'  # what no font has
WHAT_HELPS = (
    'Install a font that has them (Debian, Ubuntu: apt install fonts-noto-cjk for Chinese, '
    'Japanese and Korean, fonts-noto-core for other scripts), or put one into '
    '~/.local/share/fonts'
)

_told: set[str] = set()


class AnyScript:
    """Mixed into a visualiser of MMEngine's: texts with all their characters.

    Those that neither an installed font nor OpenCV has are drawn as boxes; the log says once which
    they are.
    """

    ax_save: Any  # MMEngine's, of matplotlib
    dpi: float

    def draw_texts(self, texts: str | list[str], *args: Any, **kwargs: Any) -> Any:
        """As MMEngine's, whose default is one font; nor are dollars mathematics here."""
        texts = [texts] if isinstance(texts, str) else texts
        families, missing = find_families(''.join(texts))
        kwargs.setdefault('font_families', [[BASE, *families]] * len(texts))
        escaped = [text.replace('$', r'\$') for text in texts]
        result = super().draw_texts(escaped, *args, **kwargs)  # type: ignore[misc]
        drawn_by_opencv = frozenset(filter(_opencv_has, missing))
        _tell(missing - drawn_by_opencv)
        for text, artist in zip(texts, self.ax_save.texts[-len(texts) :]):
            if missing & set(text) and missing & set(text) <= drawn_by_opencv:
                _replace(artist, opencv_text(text, artist.get_fontsize() * self.dpi / 72), self.dpi)
        return result


def find_families(text: Iterable[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Families of installed fonts that have what BASE has not, and the characters that none has.

    Args:
        text: the characters wanted.
    """
    return _find_families(frozenset(c for c in text if c.isprintable()))


@cache
def _find_families(characters: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    fonts = _fonts()
    missing = characters - _covered(fonts[BASE], characters)
    found: list[str] = []
    if missing:
        _find_new_fonts()
        fonts = _fonts()
    covered = {name: _covered(font, missing) for name, font in fonts.items()} if missing else {}
    while missing:
        best = max(covered, key=lambda name: len(covered[name] & missing))
        if not covered[best] & missing:
            break
        found.append(best)
        missing -= covered[best]
    return tuple(found), missing


def _fonts() -> dict[str, FontEntry]:
    """The upright and regular font of every family that matplotlib knows, by name."""
    from matplotlib.font_manager import fontManager

    def oddity(font: FontEntry) -> tuple:
        weight = font.weight if isinstance(font.weight, int) else 400
        return font.name, font.style != 'normal', abs(weight - 400), font.fname

    fonts: dict[str, FontEntry] = {}
    for font in sorted(fontManager.ttflist, key=oddity):
        # That of the last resort has boxes for whatever there is.
        if 'lastresort' not in font.name.replace(' ', '').lower():
            fonts.setdefault(font.name, font)
    return fonts


def _find_new_fonts() -> None:
    """Show matplotlib what was installed since it last looked, which it keeps in a file."""
    from matplotlib.font_manager import findSystemFonts, fontManager

    for path in sorted(set(findSystemFonts()) - {font.fname for font in fontManager.ttflist}):
        try:
            fontManager.addfont(path)
        except Exception:  # damaged fonts, and those of coloured bitmaps, raise many kinds
            continue


def _covered(font: FontEntry, characters: frozenset[str]) -> frozenset[str]:
    """Those of the characters that a font has."""
    from matplotlib.ft2font import FT2Font

    index = getattr(font, 'index', 0)  # since matplotlib 3.11, of the font in its file
    try:
        face = FT2Font(font.fname, face_index=index) if index else FT2Font(font.fname)
    except Exception:  # as above; or the file is gone
        return frozenset()
    return frozenset(c for c in characters if face.get_char_index(ord(c)))


def opencv_text(text: str, size: float) -> np.ndarray:
    """How much of each pixel a text covers, (H, W) uint8, as OpenCV draws it.

    Args:
        text: one line.
        size: of the em, pixels.
    """
    scale = size / OPENCV_EM
    (width, height), below = cv2.getTextSize(text, OPENCV_FONT, scale, 1)
    picture = np.zeros((height + below + 2, width + 2), np.uint8)
    cv2.putText(picture, text, (1, height + 1), OPENCV_FONT, scale, 255, 1, cv2.LINE_AA)
    return picture


@cache
def _opencv_has(character: str) -> bool:
    return not np.array_equal(opencv_text(character, OPENCV_EM), opencv_text(UNKNOWN, OPENCV_EM))


def _replace(text: Text, picture: np.ndarray, dpi: float) -> None:
    """Put a picture (H, W) in the place of a text, with its colour and its frame."""
    from matplotlib.colors import to_rgb
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage

    coloured = np.empty((*picture.shape, 4))
    coloured[..., :3], coloured[..., 3] = to_rgb(text.get_color()), picture / 255
    sides = dict(left=0, top=1, center=0.5, right=1, bottom=0, baseline=0, center_baseline=0.5)
    box = AnnotationBbox(
        OffsetImage(coloured, zoom=72 / dpi),
        text.get_position(),
        box_alignment=(sides[text.get_ha()], sides[text.get_va()]),
        pad=0,
        annotation_clip=False,
        frameon=text.get_bbox_patch() is not None,
    )
    if text.get_bbox_patch() is not None:
        box.patch.update_from(text.get_bbox_patch())
    text.axes.add_artist(box)
    text.remove()


def _tell(missing: frozenset[str]) -> None:
    if missing - _told:
        _told.update(missing)
        which = ' '.join(sorted(missing))
        text = f'No installed font has {which}: drawn as boxes in pictures. {WHAT_HELPS}.'
        print_log(text, logger='current', level=logging.WARNING)
