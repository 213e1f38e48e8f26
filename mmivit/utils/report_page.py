"""``report.html``: the predictions in a folder as one page, to be opened without a server.

Needs Pillow, neither torch nor OpenCV. The folder is as tools/predict.py writes it:
``predictions/NAME.json``, ``pictures/NAME.jpg`` and, of videos, ``videos/NAME.mp4``.
"""

from __future__ import annotations

import base64
import html
import io
import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from mmivit.utils.files import write_whole
from mmivit.utils.text import printable

NAME = 'report.html'
MARK = '<meta name="generator" content="mmivit">'  # of the pages that are ours to replace
THUMBNAIL = (240, 180)  # pixels, at most
EMBEDDED = 2**25  # bytes of thumbnails; pictures beyond are shown from their own files
TEMPLATE = Path(__file__).with_suffix('.html')


def check_replaceable(folder: str | Path) -> None:
    """Refuse to write the page over a file of its name that somebody else has written.

    Raises:
        FileExistsError: there is such a file.
    """
    path = Path(folder, NAME)
    if os.path.lexists(path) and not (path.is_file() and MARK in _beginning(path)):
        raise FileExistsError(f'{path} is no report of mmivit: move it away, or name another --out')


def write_report(folder: str | Path, failed: Mapping[Path, str] | None = None) -> Path:
    """Write ``report.html`` on all predictions in a folder, and return its path.

    The page holds names, counts and small pictures, asks for nothing from anywhere, and links to
    the pictures, videos and records beside it.

    Args:
        folder: with ``predictions``, ``pictures`` and ``videos``, whichever of them there are.
        failed: files that could not be predicted, and why.

    Raises:
        FileExistsError: somebody else's ``report.html`` is there.
        OSError: it cannot be written.
    """
    folder = Path(folder)
    check_replaceable(folder)
    title = folder.absolute().name
    reasons = {printable(path): reason for path, reason in (failed or {}).items()}
    results = dict(title=title, items=list(_items(folder)), failed=reasons)
    script = json.dumps(results, separators=(',', ':'))
    # Within a script of HTML, what ends it and what begins a comment both start with this.
    script = script.replace('<', '\\u003c')
    page = TEMPLATE.read_text(encoding='utf-8')
    parts = {'MARK': MARK, 'TITLE': html.escape(title), 'RESULTS': script}
    for key, text in parts.items():
        page = page.replace(f'<!-- {key} -->', text)
    write_whole(folder / NAME, page.encode('utf-8', 'replace'))
    return folder / NAME


def _items(folder: Path) -> Iterator[dict]:
    """What the page knows of each image or video, in the order of their names."""
    records = folder / 'predictions'
    room = EMBEDDED
    for path in sorted(records.rglob('*.json')):
        try:
            found = _found(json.loads(path.read_bytes()))
        except (ValueError, TypeError, KeyError, AttributeError, OSError):
            continue  # none of our records
        name = path.relative_to(records).with_suffix('')
        item = dict(name=str(name), record=_link(path, folder), **found)
        picture, video = folder / 'pictures' / f'{name}.jpg', folder / 'videos' / f'{name}.mp4'
        if video.is_file():
            item['video'] = _link(video, folder)
        if picture.is_file():
            item['picture'] = _link(picture, folder)
            thumbnail = _thumbnail(picture) if room > 0 else ''
            room -= len(thumbnail)
            if thumbnail:
                item['thumbnail'] = thumbnail
        yield item


def _found(record: dict) -> dict:
    """Of each class the scores of its detections, or the shares of its pixels, over all frames."""
    frames = record.get('frames', [record])
    values: dict[str, list[float]] = {}
    for frame in frames:
        for name, value in _pairs(frame):
            values.setdefault(str(name), []).append(round(float(value), 4))
    found = dict(width=int(record['width']), height=int(record['height']), values=values)
    if 'frames' in record:
        found['frames'] = len(frames)
    if any('shares' in frame for frame in frames):
        found['shares'] = True
    return found


def _pairs(frame: dict) -> Iterable[tuple[str, float]]:
    if 'shares' in frame:
        return frame['shares'].items()
    return [(found['name'], found['score']) for found in frame['detections']]


def _link(path: Path, folder: Path) -> str:
    """A relative address; names may hold any bytes."""
    return quote(os.fsencode(path.relative_to(folder)))


def _thumbnail(picture: Path) -> str:
    """A small picture as a data URI; none of what Pillow does not read."""
    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of sizes; a small part of them is decoded
            with Image.open(picture, formats=('JPEG',)) as image:
                image.draft('RGB', THUMBNAIL)
                small = image.convert('RGB')
        small.thumbnail(THUMBNAIL)
        small.save(buffer, 'JPEG', quality=75)
    except (OSError, ValueError, Image.DecompressionBombError):
        return ''
    return f'data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}'


def _beginning(path: Path) -> str:
    with open(path, encoding='utf-8', errors='replace') as file:
        return file.read(1024)
