"""mmivit: iViT, a backbone with linear interactive attention, for mmdet and mmseg."""

import sys

from mmivit.version import __version__

__all__ = ['__version__', 'registry']

# `python -m mmivit.doctor` imports this package first, and has to run where the rest of it cannot.
# While a module given by -m is looked up, '-m' stands in the place of its path.
if not (sys.argv[:1] == ['-m'] and any('mmivit.doctor' in arg for arg in sys.orig_argv[1:])):
    try:
        from mmivit import registry
        from mmivit.sharing import share_when_imported
        from mmivit.weights.safe_globals import allow_mmengine_checkpoints

        share_when_imported()
        allow_mmengine_checkpoints()
    except Exception as error:  # broken installations raise anything: OSError, AttributeError, ...
        raise ImportError(
            f'mmivit needs torch, numpy, mmengine and wrapt, and met {type(error).__name__}: '
            f'{error}\nWhat is wrong, and the command that mends it: python -m mmivit.doctor'
        ) from error
