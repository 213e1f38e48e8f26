"""The conversions, by the name that others import them by."""

from mmivit.weights.converters import ConversionReport, convert
from mmivit.weights.kinds import SOURCES, recognise

__all__ = ['SOURCES', 'ConversionReport', 'convert', 'recognise']
