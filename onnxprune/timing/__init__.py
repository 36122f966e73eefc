"""What a width costs on this machine, in milliseconds that were measured.

kernels   what ONNX Runtime runs of a typed graph: nodes that it fuses, their axes, their time in the whole model
micro     one kernel as a model of its own, at other widths; many of them are timed in one session
steps     which widths are worth having: the step below which a kernel does not get faster
tables    a kernel's time over a grid of widths, interpolated; all kernels together as a `cost.Cost`
store     what was measured before on this machine
clock     these together, for the model and the settings of one run
"""

from onnxprune.timing.clock import Attempt, Clock, LatencyModel
from onnxprune.timing.store import Store, cache_folder

__all__ = ["Attempt", "Clock", "LatencyModel", "Store", "cache_folder"]
