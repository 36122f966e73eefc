"""How much each unit matters: criteria by name. A criterion maps a typed graph and dims to scores per unit, larger for
more important.
"""

from onnxprune.criteria.magnitude import Scores, l1, l2

CRITERIA = {"l1": l1, "l2": l2}
__all__ = ["CRITERIA", "Scores"]
