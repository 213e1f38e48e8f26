"""A drawn data set to put faults into, and what check_data says of it."""

import json
import struct
import zlib

from mmivit.apis.check_data import check_datasets
from tests.conftest import CONFIGS

DETECTION = CONFIGS / 'mask_rcnn_ivit_shapes.py'
SEGMENTATION = CONFIGS / 'upernet_ivit_shapes.py'
IMAGES = 'data/shapes/images/training'
LABELS = 'data/shapes/annotations/training'
COCO = 'data/shapes/annotations/instances_training.json'
VALIDATION = COCO.replace('training', 'validation')
TRAIN = 16
BOXES = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs'),
]


def check(config, splits=('train',), **options):
    (report,) = check_datasets(str(config), splits, options)
    return report


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def rename(path, new):
    """Change the file names of a COCO file's images."""

    def change(content):
        for image in content['images']:
            image['file_name'] = new(image['file_name'])

    edit(path, change)


def found(report, kind):
    """How many of the one kind whose name contains this, and the examples."""
    counts = report.problems + report.notes
    (name,) = [name for name in counts if kind in name]
    return counts[name], ' '.join(report.examples[name])


def header_of_png(width, height):
    chunks = [(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)), (b'IEND', b'')]
    packed = [
        struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))
        for name, data in chunks
    ]
    return b'\x89PNG\r\n\x1a\n' + b''.join(packed)
