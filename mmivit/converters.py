"""The conversions, by the name that others import them by."""

from mmivit.weights.converters import SOURCES, ConversionReport, convert, recognise

__all__ = ['SOURCES', 'ConversionReport', 'convert', 'recognise']
