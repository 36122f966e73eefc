"""Data that a user gives: arrays in files or in memory, images, random inputs; read as `Samples`."""

from onnxprune.data.images import ImageFolder, Preprocessing
from onnxprune.data.samples import (
    BATCH,
    LABEL_NAMES,
    SAMPLES,
    DataLike,
    Labels,
    Samples,
    fitting,
    load_feeds,
    sample_count,
)
from onnxprune.data.sources import with_preprocessing

__all__ = [
    "BATCH", "LABEL_NAMES", "SAMPLES", "DataLike", "ImageFolder", "Labels", "Preprocessing", "Samples", "fitting",
    "load_feeds", "sample_count", "with_preprocessing",
]  # fmt: skip
