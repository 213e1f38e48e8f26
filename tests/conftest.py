"""What the tests share: a small drawn data set and commands run as a user runs them."""

import inspect
import logging
import os
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

import pytest

# A core each for the two processes that run the tests, and for what they start.
os.environ.setdefault('OMP_NUM_THREADS', '1')

import torch
from mmengine.logging import MMLogger
from mmengine.visualization import Visualizer

from mmivit.apis.inferencers import Prepared
from mmivit.datasets.shapes import ShapesSpec, write_dataset
from tests.forked import Forked

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / 'configs'
# Seconds after which a process counts as hanging, on however busy a machine.
TIMEOUT = 1800
# What make test-quick leaves out beside the tests that start processes: whole models, exports and
# measurements; by how their names begin.
SLOW = (
    'tests/analysis/test_attention_pictures.py',
    'tests/analysis/test_map_drawing.py',
    'tests/analysis/test_benchmark',
    'tests/analysis/test_cost.py',
    'tests/experiments/',
    'tests/export/',
    'tests/models/test_torch_module.py::test_compiled_by_inductor',
    'tests/test_configs.py::test_detection_config',
    'tests/test_configs.py::test_segmentation_config',
    'tests/test_doctor.py',
    'tests/test_pipelines.py',
    'tests/test_properties.py',
    'tests/test_recipes.py',
    'tests/weights/test_converters.py::test_caformer_computes_the_same',
)
# Files that take longest, begun first: at the end one process would wait for the other.
LONGEST = (
    'tests/test_faults.py',
    'tests/export/test_graphs.py',
    'tests/experiments/',
    'tests/test_packaging.py',
    'tests/test_distributed.py',
    'tests/test_end_to_end.py',
    'tests/models/test_torch_module.py',
)
FORKS = 'onedl-mmengine' in metadata.packages_distributions()['mmengine']


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))
    for item in items:
        fixtures = item._fixtureinfo.name2fixturedefs
        used = [item.function, *(fixture.func for name in fixtures for fixture in fixtures[name])]
        if item.nodeid.startswith(SLOW) or any(starts_processes(function) for function in used):
            item.add_marker('slow')
        for mark in item.iter_markers('matrix'):
            item.user_properties.append(('matrix', mark.args[0]))
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason='needs a CUDA device; torch sees none')
        for item in items:
            if 'gpu' in item.keywords:
                item.add_marker(skip)


def starts_processes(function, seen=()):
    """Whether a function of the tests, or one it calls by its name, starts a process."""
    if not inspect.isfunction(function) or not function.__module__.startswith('tests.'):
        return False
    names, codes = set(), [function.__code__]
    for code in codes:
        names |= set(code.co_names)
        codes += filter(inspect.iscode, code.co_consts)  # comprehensions and functions within
    called = (function.__globals__.get(name) for name in names)
    return bool(names & {'Forked', 'Training', 'run_tool', 'spawn', 'subprocess'}) or any(
        starts_processes(other, (*seen, function))
        for other in called
        if other not in (*seen, function)
    )


@pytest.fixture(autouse=True)
def nothing_made_before():
    """MMEngine's hooks draw with the visualiser, and it logs with the logger, that was made last.

    In whichever test: a runner's logger, which writes to a file, would get what a test waits for.
    """
    Visualizer._instance_dict.clear()
    MMLogger._instance_dict.clear()


@pytest.fixture
def log():
    """Everything logged through mmengine's current logger, one message per entry."""
    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)


@pytest.fixture(scope='session')
def shapes(tmp_path_factory):
    """A folder with ``data/shapes`` in it, to be used as working directory."""
    folder = tmp_path_factory.mktemp('workspace')
    write_dataset(folder / 'data' / 'shapes', ShapesSpec(train=16, val=4, size=128))
    return folder


def sample_of(image):
    """An image as the test pipeline's loader hands it on."""
    return dict(img=image, img_shape=image.shape[:2], ori_shape=image.shape[:2])


def prepared(pipeline, image):
    """An image as predict.py hands it to a model."""
    sample = sample_of(image)
    return Prepared(sample, pipeline(sample))


def link_installed(folder, wanted=(), without=()):
    """Link what is installed here into a folder: by how names begin, or all without some."""
    folder.mkdir(exist_ok=True)
    for path in Path(sysconfig.get_paths()['purelib']).iterdir():
        name = path.name.lower()
        if not name.startswith(without) and name.startswith(wanted or ('',)):
            (folder / path.name).symlink_to(path)


def run_tool(name, *args, cwd, fresh=False, **env):
    """Run ``python tools/NAME`` and return the finished process, output as text.

    Args:
        name: of the tool.
        args: of the tool.
        cwd: working directory.
        fresh: in a process that has imported nothing, as a user starts it; else see forked.py.
        env: more variables.
    """
    script = ROOT / 'tools' / name
    if not fresh:
        return Forked(script, args, cwd, env).wait(TIMEOUT)
    return subprocess.run(
        [sys.executable, str(script), *map(str, args)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        env={**os.environ, **env},
    )
