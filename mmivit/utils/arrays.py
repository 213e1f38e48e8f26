"""Plain values in place of numpy's, which configs and checkpoints are not to hold."""

from __future__ import annotations

from typing import Any

import numpy as np


def plain(value: Any) -> Any:
    """A value with lists and numbers in place of numpy's arrays and scalars, at any depth.

    Dicts are changed in place.
    """
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, dict):
        for key, own in value.items():
            new = plain(own)
            if new is not own:  # a config's lazy imports stay as they are
                value[key] = new
    elif type(value) in (list, tuple):
        return type(value)(map(plain, value))
    return value
