"""onnxprune: structured pruning of ONNX models as a compiler.

>>> import onnxprune
>>> result = onnxprune.prune("models/mnist_cnn.onnx", ratio=0.5)
>>> result.report.surgery_check.passed
True
"""

from onnxprune.version import __version__  # isort: skip
from onnxprune.api import apply, measure_sensitivity, prune
from onnxprune.errors import GateError, InputError, OnnxPruneError
from onnxprune.plan import Plan
from onnxprune.pruning import PruneResult
from onnxprune.sensitivity import Sensitivity

__all__ = [
    "GateError",
    "InputError",
    "OnnxPruneError",
    "Plan",
    "PruneResult",
    "Sensitivity",
    "__version__",
    "apply",
    "measure_sensitivity",
    "prune",
]
