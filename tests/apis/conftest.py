"""What the tests of data checks share."""

import pytest

from mmivit.datasets.shapes import ShapesSpec, write_dataset
from tests.faulty_data import TRAIN


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """The working directory, with a small drawn data set."""
    write_dataset(tmp_path / 'data/shapes', ShapesSpec(train=TRAIN, val=2, size=32))
    monkeypatch.chdir(tmp_path)
    return tmp_path
