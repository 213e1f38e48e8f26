"""Packaging of mmivit."""

import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
# What `mim` looks for inside an installed OpenMMLab package.
MIM_EXTENSION = ('configs', 'tools', 'model-index.yml')


class BuildWithMim(build_py):
    """Adds ``mmivit/.mim``: copies in a wheel, links in an editable installation."""

    def run(self):
        super().run()
        if self.editable_mode:
            self._place(ROOT / 'mmivit' / '.mim', lambda source, target: target.symlink_to(source))
        else:
            self._place(Path(self.build_lib) / 'mmivit' / '.mim', self._copy)

    def _place(self, folder, put):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name in MIM_EXTENSION:
            put(ROOT / name, folder / name)

    @staticmethod
    def _copy(source, target):
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns('__pycache__'))
        else:
            shutil.copy(source, target)


def read_version():
    namespace = {}
    exec((ROOT / 'mmivit' / 'version.py').read_text(), namespace)
    return namespace['__version__']


setup(
    name='mmivit',
    version=read_version(),
    description='iViT, a backbone with linear interactive attention, for mmdet and mmseg',
    long_description=(ROOT / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=('mmivit', 'mmivit.*')),
    package_data={'mmivit': ['py.typed', 'utils/*.html']},
    cmdclass={'build_py': BuildWithMim},
    python_requires='>=3.10',
    # torch, mmengine, mmcv, mmdet, mmseg and timm are the user's: naming them here would replace
    # builds for another CUDA, or install mmcv beside its maintained fork. The extras name them.
    install_requires=['wrapt'],
    extras_require={
        'det': ['mmengine>=0.10', 'mmcv>=2.0,<2.2', 'mmdet>=3.3'],
        'seg': ['mmengine>=0.10', 'mmcv>=2.0,<2.2', 'mmsegmentation>=1.2', 'ftfy', 'regex'],
        'timm': ['timm>=1.0'],
        'project': ['supervision>=0.31'],  # tools/new_project.py
        'export': ['onnx', 'onnxscript', 'onnxruntime'],
    },
)
