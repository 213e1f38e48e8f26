"""The loaders of a pipeline, by class."""

import mmdet.datasets.transforms as detection
import mmseg.datasets.transforms as segmentation
import numpy as np
import pytest
from mmcv.transforms import BaseTransform, LoadImageFromFile
from mmengine.registry import TRANSFORMS

from mmivit.datasets.loaders import ImagePipeline, find_loaders, loading
from mmivit.errors import LaunchError


@TRANSFORMS.register_module()
class ReadTile(BaseTransform):
    def transform(self, results):
        return dict(results, img=np.load(results['img_path']))


@TRANSFORMS.register_module()
class Polarised(LoadImageFromFile):
    """Stock, by another name."""


@TRANSFORMS.register_module()
class LoadLabelAnnotation(BaseTransform):
    def transform(self, results):
        return results


def test_stock_loaders_by_class_within_the_scope():
    steps = [dict(type='LoadImageFromFile', to_float32=True), dict(type='Resize', scale=(9, 9))]
    steps.append(dict(type='LoadAnnotations', with_mask=True))
    loaders = find_loaders(steps, 'mmdet')
    assert type(loaders.image) is LoadImageFromFile
    assert loaders.image.to_float32
    assert type(loaders.labels) is detection.LoadAnnotations
    assert loaders.with_mask
    loaders = find_loaders([dict(type=LoadImageFromFile), dict(type='LoadAnnotations')], 'mmseg')
    assert type(loaders.labels) is segmentation.LoadAnnotations
    assert not loaders.with_mask


def test_loaders_of_ones_own_and_nested_ones():
    steps = [
        dict(type='RandomApply', transforms=[dict(type='Polarised')]),
        dict(type='LoadLabelAnnotation'),
    ]
    loaders = find_loaders(steps, 'mmdet')
    assert type(loaders.image) is Polarised
    assert type(loaders.labels) is LoadLabelAnnotation
    assert type(find_loaders([dict(type='ReadTile')], 'mmseg').image) is ReadTile


def test_a_pipeline_without_loaders_or_with_empty_annotations():
    loaders = find_loaders([], 'mmdet')
    assert type(loaders.image) is LoadImageFromFile
    assert loaders.labels is None
    unlabelled = [dict(type='LoadImageFromFile'), dict(type='LoadEmptyAnnotations')]
    assert find_loaders(unlabelled, 'mmdet').labels is None


def test_a_loader_that_cannot_be_built():
    with pytest.raises(LaunchError, match='NoSuchLoader'):
        find_loaders([dict(type='NoSuchLoader')], 'mmdet')
    with pytest.raises(LaunchError, match=r'LoadImageFromFile: .*speed'):
        find_loaders([dict(type='LoadImageFromFile', speed=9)], 'mmdet')


def test_a_pipeline_for_images_without_labels(tmp_path):
    np.save(tmp_path / 'a.npy', np.arange(6).reshape(2, 3))
    steps = [dict(type='ReadTile'), dict(type='LoadLabelAnnotation'), dict(type='Pad', size=(4, 4))]
    pipeline = ImagePipeline(steps, 'mmdet')
    assert type(pipeline.loader) is ReadTile
    sample = pipeline.load(tmp_path / 'a.npy')
    assert sample['img'].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert pipeline(sample)['img'].shape == (4, 4)
    assert sample['img'].shape == (2, 3)  # as it was loaded: it is drawn on
    with pytest.raises(LaunchError, match='nothing loads an image'):
        ImagePipeline([dict(type='LoadAnnotations')], 'mmseg')


def test_how_a_loader_decodes_is_said_as_a_config_says_it():
    assert loading(LoadImageFromFile(to_float32=True)) == 'LoadImageFromFile'
    grey = LoadImageFromFile(color_type='grayscale', imdecode_backend='pillow')
    said = "LoadImageFromFile(color_type='grayscale', imdecode_backend='pillow')"
    assert loading(grey) == said
    assert loading(ReadTile()) == 'ReadTile'
