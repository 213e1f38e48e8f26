"""Which check a class of data sets gets."""

import subprocess
import sys

from mmdet.datasets import BaseSegDataset as DetectionSegDataset
from mmdet.datasets import CocoDataset, LVISV1Dataset, XMLDataset
from mmengine.dataset import BaseDataset
from mmseg.datasets import ADE20KDataset, BaseSegDataset

from mmivit.datasets.checks import find_check
from mmivit.datasets.coco import check_coco
from mmivit.datasets.label_maps import check_label_maps


class OwnClasses(CocoDataset):
    METAINFO = dict(classes=('cat', 'dog'))


class OwnFilter(OwnClasses):
    def filter_data(self):
        return self.data_list


class OwnParsing(OwnClasses):
    def parse_data_info(self, raw_data_info):
        return super().parse_data_info(raw_data_info)


class Namesake:
    class CocoDataset(BaseDataset):
        """Only named as mmdet's."""


def test_data_sets_get_their_check_by_class():
    assert find_check(CocoDataset) is find_check(OwnClasses) is find_check(OwnFilter) is check_coco
    for kind in (BaseSegDataset, ADE20KDataset, DetectionSegDataset):
        assert find_check(kind) is check_label_maps
    for kind in (XMLDataset, LVISV1Dataset, OwnParsing, Namesake.CocoDataset):
        assert find_check(kind) is None


def test_one_of_mmdet_and_mmseg_is_enough():
    code = """
import sys
sys.modules['mmdet'] = None
from mmivit.datasets.checks import check_label_maps, find_check
assert 'mmseg' not in sys.modules
from mmseg.datasets import BaseSegDataset
assert find_check(BaseSegDataset) is check_label_maps
"""
    subprocess.run([sys.executable, '-c', code], check=True)
