"""mmseg's and mmdet's own tools that show a data set, on the drawn one."""

from importlib import import_module
from pathlib import Path

import cv2
import pytest

from tests.conftest import CONFIGS, TIMEOUT
from tests.forked import Forked


@pytest.mark.parametrize(
    ('package', 'config'),
    [('mmseg', 'upernet_ivit_shapes.py'), ('mmdet', 'mask_rcnn_ivit_shapes.py')],
)
def test_browse_dataset(package, config, shapes, tmp_path):
    tools = Path(import_module(package).__file__).parent / '.mim/tools/analysis_tools'
    command = (CONFIGS / config, '--output-dir', tmp_path, '--not-show')
    done = Forked(tools / 'browse_dataset.py', command, shapes, {}).wait(TIMEOUT)
    assert done.returncode == 0, done.stderr[-3000:]
    drawn = sorted(tmp_path.glob('*.jpg'))
    assert len(drawn) == 16
    picture = cv2.imread(str(drawn[0]))
    image = cv2.imread(str(shapes / 'data/shapes/images/training' / drawn[0].name))
    assert abs(cv2.resize(image, picture.shape[1::-1]).astype(int) - picture).mean() > 10
