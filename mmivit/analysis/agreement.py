"""How a converted model stands beside the one that its weights came from.

Where weights are converted this is logged, so it lies with them: :mod:`mmivit.weights.agreement`.
"""

from mmivit.weights.agreement import StageAgreement, agreement

__all__ = ['StageAgreement', 'agreement']
