"""Runs are made in processes that have imported the stack, as the commands of the tests are."""

import pytest

from mmivit.experiments import runs
from tests import forked


@pytest.fixture(autouse=True)
def forked_runs(monkeypatch):
    """A fresh process for the runs would import the stack for every test."""
    start = runs.multiprocessing.get_context

    def get_context(method=None):
        return forked.context if method == 'spawn' else start(method)

    monkeypatch.setattr(runs.multiprocessing, 'get_context', get_context)
