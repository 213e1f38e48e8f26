"""The config that MMEngine keeps in a checkpoint, read as values: it is a program of a stranger's.

MMEngine writes it as text, ``name = value`` for each setting of the top level. What is read here
are plain values alone: numbers, strings, lists and dicts, never a name or a call of anything but
``dict``. Python's own parser is not asked: up to 3.10 deep nesting crashes it.
"""

from __future__ import annotations

import ast
import inspect
import re
from typing import Any

from mmivit.models.attention import ATTENTIONS
from mmivit.models.ivit import IViT

LONGEST = 2**20  # characters; those of configs are some ten thousand
DEEPEST = 64  # lists within dicts and so on; those of configs are some ten
UNKNOWN = ...  # stands for a value that is not plain
CLASSES = (IViT.__name__, 'IViTClassifier')  # which needs timm
# Settings of an iViT that change what it computes and have no weights.
WITHOUT_WEIGHTS = ('attention', 'head_dim', 'interaction', 'landmarks', 'output_stride')
CONSTANTS = {'None': None, 'True': True, 'False': False}
TOKEN = re.compile(
    r"""\s*(?:
    (?P<literal> '(?:[^'\\\n]|\\.)*' | "(?:[^"\\\n]|\\.)*" | -?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)
    | (?P<name> [^\W\d]\w*)
    | (?P<mark> [()\[\]{}=:,])
    | (?P<end> \Z)
    )""",
    re.VERBOSE,
)


def stored_config(checkpoint: dict) -> dict[str, Any]:
    """The config in a checkpoint's ``meta.cfg``: of each setting that can be read, its value.

    Returns:
        Values of numbers, strings, None, lists (tuples too) and dicts; :data:`UNKNOWN` for others.
        Empty if the checkpoint has no config.
    """
    meta = checkpoint.get('meta')
    text = meta.get('cfg') if isinstance(meta, dict) else None
    settings = {}
    if isinstance(text, str) and len(text) <= LONGEST:
        for line in re.split(r'^(?=\w+ = )', text, flags=re.MULTILINE):
            name, _, value = line.partition(' = ')
            try:
                settings[name] = _Reader(value).read()
            except (ValueError, SyntaxError):  # of what is not plain, or of a damaged string
                continue
    return settings


def stored_backbone(checkpoint: dict) -> dict[str, Any]:
    """The settings of the iViT in a checkpoint's config, defaults too; empty if it has none."""
    waiting = [stored_config(checkpoint).get('model')]
    while waiting:
        node = waiting.pop(0)
        if isinstance(node, dict):
            if str(node.get('type')).rpartition('.')[2] in CLASSES:
                return with_defaults(node)
            waiting += node.values()
    return {}


def backbone_text(checkpoint: dict) -> str:
    """What :func:`stored_backbone` says and no tensor tells, as the text of a config; may be empty.

    No paths are in it, unlike in the whole config.
    """
    backbone = stored_backbone(checkpoint)
    kept = {name: backbone[name] for name in ('type', *WITHOUT_WEIGHTS) if name in backbone}
    return f'model = {dict(backbone=kept)}\n' if kept else ''


def with_defaults(backbone: dict[str, Any]) -> dict[str, Any]:
    """An iViT's settings with the defaults of :data:`WITHOUT_WEIGHTS` that its attention has."""
    parameters = inspect.signature(IViT).parameters
    options = {**{name: parameters[name].default for name in WITHOUT_WEIGHTS}, **backbone}
    attention = ATTENTIONS.get(str(options['attention']))
    known = inspect.signature(attention).parameters if attention else WITHOUT_WEIGHTS
    unused = {'landmarks', 'interaction'} - set(known)
    return {name: value for name, value in options.items() if name not in unused}


class _Reader:
    """Reads one value, from left to right."""

    def __init__(self, text: str) -> None:
        self.text, self.position = text, 0

    def read(self) -> Any:
        """The value that the text is.

        Raises:
            ValueError, SyntaxError: it is no plain value.
        """
        value = self._value(0)
        if self._take()[0] != 'end':
            raise ValueError('more than one value')
        return value

    def _take(self, wanted: str = '') -> tuple[str, str]:
        """The next token and its kind; kind and text are empty if another was wanted."""
        match = TOKEN.match(self.text, self.position)
        if match is None or match.lastgroup is None:
            raise ValueError('no plain value')
        if wanted and match[match.lastgroup] != wanted:
            return '', ''
        self.position = match.end()
        return match.lastgroup, match[match.lastgroup]

    def _value(self, depth: int) -> Any:
        if depth > DEEPEST:
            raise ValueError('too deep')
        kind, text = self._take()
        if kind == 'literal':
            return ast.literal_eval(text)
        if text in ('(', '['):
            return self._items(')' if text == '(' else ']', depth)
        if text == '{':
            return dict(self._items('}', depth, ':'))
        if text == 'dict' and self._take('(')[0]:
            return dict(self._items(')', depth, '='))
        if kind == 'name':
            return CONSTANTS.get(text, UNKNOWN)
        raise ValueError('no plain value')

    def _items(self, end: str, depth: int, between: str = '') -> list:
        """Values up to a bracket; with something between two, pairs of a key and a value."""
        items: list[Any] = []
        while not self._take(end)[0]:
            if items and not self._take(',')[0]:
                raise ValueError('no comma')
            if items and self._take(end)[0]:
                break
            if not between:
                items.append(self._value(depth + 1))
                continue
            kind, text = self._take()
            if kind not in ('literal', 'name') or not self._take(between)[0]:
                raise ValueError('no key')
            key = ast.literal_eval(text) if kind == 'literal' else text
            items.append((key, self._value(depth + 1)))
        return items
