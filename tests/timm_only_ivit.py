"""Pytest plugin for timm's own tests: its lists of models hold iViT's, and those alone."""

import fnmatch
import os

import timm

import mmivit.models.classifier  # noqa: F401 - registers them

NAMES = timm.list_models(os.environ.get('IVIT_MODELS', 'ivit_*'))


def list_models(filter='', module='', pretrained=False, exclude_filters='', **options):
    """timm's, without regard to the module: also tests that timm runs on some files only."""
    if pretrained:
        return []  # there are no weights
    filters = [filter] if isinstance(filter, str) else filter
    return [n for n in NAMES if filter == '' or any(fnmatch.fnmatch(n, f) for f in filters)]


timm.list_models = list_models
