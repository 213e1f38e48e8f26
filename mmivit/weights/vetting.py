"""Looking at strangers' checkpoints before torch reads them.

``weights_only`` keeps a checkpoint from running code. It does not keep a small one from filling
the memory (members that inflate, tensors larger than the file), from never ending (tuples of the
same tuple, thirty deep, as a key: hashing it takes 2^30 steps), or from crashing the interpreter
(a key of a million nested tuples, numpy dtypes with a forged state).
"""

from __future__ import annotations

import io
import pickletools
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

from mmivit.utils.files import RefusedFile

ZIP_START = b'PK\x03\x04'  # by which torch tells its two formats apart
LEGACY_START = b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.'  # torch's magic number, pickled
LEGACY_PICKLES = 5  # magic number, protocol, system, the object, the keys of its storages
# What torch's weights_only unpickler knows, which is what pickle's protocol 2 needs.
OPERATIONS = frozenset(
    """
    APPEND APPENDS BINFLOAT BINGET BININT BININT1 BININT2 BINPERSID BINPUT BINUNICODE BUILD
    EMPTY_DICT EMPTY_LIST EMPTY_SET EMPTY_TUPLE GLOBAL LONG1 LONG_BINGET LONG_BINPUT MARK NEWFALSE
    NEWOBJ NEWTRUE NONE PROTO REDUCE SETITEM SETITEMS SHORT_BINSTRING STOP TUPLE TUPLE1 TUPLE2
    TUPLE3
    """.split()  # noqa: SIM905
)
CHANGES = frozenset(('APPEND', 'APPENDS', 'SETITEM', 'SETITEMS', 'BUILD'))
CONSTANTS = dict(NONE=None, NEWTRUE=True, NEWFALSE=False, EMPTY_TUPLE=())
DEEPEST = 64  # containers within containers; MMEngine's checkpoints have about ten
SHARING = 64  # steps to walk through everything, per byte of pickle


def check_checkpoint(path: str | Path) -> None:
    """Refuse a checkpoint in either of torch's formats that would harm its reader.

    Raises:
        RefusedFile: it would.
        Exception: of nearly any kind, it is damaged.
    """
    with open(path, 'rb') as file:
        start = file.read(len(LEGACY_START))
        if start.startswith(ZIP_START):
            _check_archive(file)
        elif start == LEGACY_START and not tarfile.is_tarfile(path):
            file.seek(0)
            size = Path(path).stat().st_size
            for _ in range(LEGACY_PICKLES):
                _check_pickle(file, lambda key: size)
        elif start.startswith(b'\x80'):
            raise RefusedFile('a plain pickle, not safe to load, and not as torch writes them')
        else:
            raise ValueError('neither of the formats of torch')


def _check_archive(file: BinaryIO) -> None:
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
    sizes = {member.filename.partition('/')[2]: member.file_size for member in members}
    if 'constants.pkl' in sizes:
        raise RefusedFile('a TorchScript archive, which is a program and not safe to load')
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise RefusedFile('an archive with compressed members, which torch does not write')
    if sum(member.file_size for member in members) > file.seek(0, io.SEEK_END):
        raise RefusedFile('an archive whose members are larger than the file')
    file.seek(0)
    reader = torch._C.PyTorchFileReader(file)  # torch's own: the two may see different things
    if len(sizes) < len(members) or set(reader.get_all_records()) != set(sizes):
        raise RefusedFile('an archive whose members are not told apart by their names')
    pickled = reader.get_record('data.pkl')
    _check_pickle(pickled, lambda key: sizes[f'data/{key}'])


@dataclass(slots=True, eq=False)
class _Value:
    """What is known of a value on the unpickler's stack."""

    content: Any = ...  # of an atom itself, of a flat tuple the atoms, of a global its name
    size: int = 1  # of a walk through it
    depth: int = 0
    held: bool = False  # by a container, whose size counts it as it was then


def _check_pickle(pickled: bytes | BinaryIO, room: Callable[[str], int]) -> None:
    """Go through a pickle without building anything, and refuse what harms while it is built.

    Args:
        pickled: the bytes, or a file at the beginning of the pickle, which is left at its end.
        room: bytes there are for the storage of a key.
    """
    stack: list[_Value] = []
    marks: list[int] = []
    memo: dict[int, _Value] = {}
    steps = 0
    first = None
    # Positions are None only in a stream that cannot tell its own.
    operations = cast(
        Iterator[tuple[pickletools.OpcodeInfo, Any, int]], pickletools.genops(pickled)
    )
    for operation, argument, position in operations:
        first = position if first is None else first
        name = operation.name
        if name not in OPERATIONS:
            raise RefusedFile(f'a pickle with the operation {name}, which torch does not write')
        if name == 'MARK':
            marks.append(len(stack))
        elif name.endswith('PUT'):
            memo[argument] = stack[-1]
            if argument > position:
                raise RefusedFile('a pickle that numbers more values than it has')
        elif name.endswith('GET'):
            stack.append(memo[argument])
        else:
            parts = _pop(stack, marks, operation)
            if not operation.stack_after:  # PROTO, STOP
                continue
            value = parts.pop(0) if name in CHANGES else _Value()
            if value.held or value in parts:
                raise RefusedFile('a pickle of values that hold each other in circles')
            for part in parts:
                part.held = True
                steps += part.size
                value.size += part.size
                value.depth = max(value.depth, part.depth + 1)
            if value.depth > DEEPEST:
                raise RefusedFile(f'a pickle of values within values, more than {DEEPEST} deep')
            if steps > SHARING * (position - first + 2**14):
                raise RefusedFile('a pickle that repeats the same values without end')
            _look(name, argument, value, parts, room)
            stack.append(value)


def _pop(stack: list[_Value], marks: list[int], operation: pickletools.OpcodeInfo) -> list[_Value]:
    """Take an operation's values off the stack, the lowest first."""
    start = len(stack) - len(operation.stack_before)
    if pickletools.markobject in operation.stack_before:
        start = marks.pop() - operation.stack_before.index(pickletools.markobject)
    if start < (marks[-1] if marks else 0):
        raise RefusedFile('a damaged pickle')
    parts = stack[start:]
    del stack[start:]
    return parts


def _look(
    name: str, argument: Any, value: _Value, parts: list[_Value], room: Callable[[str], int]
) -> None:
    """Note what the new value is, where it matters, and refuse harmful calls."""
    contents = tuple(part.content for part in parts)
    if not parts:
        value.content = CONSTANTS.get(name, ... if argument is None else argument)
        if name == 'GLOBAL' and str(argument).startswith('numpy.dtypes '):
            raise RefusedFile('a pickle that reaches for the types of numpy')
    elif name.startswith('TUPLE'):
        value.content = tuple(... if type(c) is tuple else c for c in contents)
    elif name == 'BINPERSID':
        _, kind, key, _, count = contents[0][:5]
        storage = getattr(torch, kind.split(' ')[1]) if kind.endswith('Storage') else None
        itemsize = getattr(storage, 'dtype', torch.uint8).itemsize
        if type(count) is not int or not 0 <= count * itemsize <= room(key):
            raise RefusedFile('a pickle whose tensors are larger than the file')
    elif name == 'REDUCE':
        called, arguments = contents
        # pickle writes bytes as text and an encoding; some encodings take forever.
        if called == '_codecs encode' and (arguments == ... or arguments[1:] != ('latin1',)):
            raise RefusedFile('a pickle with an encoding that torch does not write')
        if called == 'numpy dtype':
            value.content = ('dtype',)
    elif name == 'BUILD' and value.content == ('dtype',):
        version, order, *rest = contents[0]
        if (version, rest) != (3, [None, None, None, -1, -1, 0]) or order not in ('<', '>', '|'):
            raise RefusedFile('a pickle with a forged numpy dtype')
