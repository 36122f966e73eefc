"""A folder of images as model inputs: decoded, resized, cropped and normalised as the user states it.

    pixel -> (pixel * scale - mean) / std         channel by channel, in the order in which the model gets them

Resizing and cropping are those of torchvision on Pillow images (`Resize`, `CenterCrop`), since most classifiers were
trained with them. Pillow is an optional dependency, imported when an image is read. What is left out: letterboxes,
rotation marks (EXIF), several images per sample; give these as arrays.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from onnxprune.errors import InputError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
LABELS = "labels"  # what the array of labels is called
CHOICES: dict[str, tuple[str, ...]] = {
    "crop": ("center", "none"),
    "layout": ("NCHW", "NHWC"),
    "color": ("RGB", "BGR", "L"),
    "interpolation": ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"),
}
Number = float | int
Pair = tuple[int, int]
Row = Mapping[str, NDArray[Any]]  # one sample, by input name


@dataclass(frozen=True)
class Preprocessing:
    """From an image file to one row of a model's input: the table `[data]` of a config.

    Args:
        size: (height, width) that the model gets; that of its input if it is fixed.
        resize: before the crop: the shorter side in pixels, aspect kept; or (height, width).
        crop: "center" cuts `size` out of the middle (without `resize`: out of the image scaled to just cover it);
            "none" stretches the image to `size`. Default: "center" where `resize` is given, else "none".
        layout: "NCHW" or "NHWC"; default: where the model's input has 1 or 3 channels.
        color: "RGB", "BGR" or "L" (grey); default: "RGB", or "L" for one channel.
        scale: what pixels (0 to 255) are multiplied with; default: 1/255 for float inputs, 1 for integers.
        mean, std: subtracted, then divided by: a number or one per channel, in units after `scale`.
        input: name of the model's input that gets the images, where it has several.
        constants: what the other inputs get, the same for each image, without the batch axis.
        labels: a CSV file with rows `file,label`; default: the sub-folders' names, sorted and counted from 0.
        interpolation: Pillow's name of the resampling filter.

    Raises:
        InputError: a value is not one of these.
    """

    size: Pair | None = None
    resize: int | Pair | None = None
    crop: Literal["center", "none"] | None = None
    layout: Literal["NCHW", "NHWC"] | None = None
    color: Literal["RGB", "BGR", "L"] | None = None
    scale: Number | None = None
    mean: Number | Sequence[Number] = 0
    std: Number | Sequence[Number] = 1
    input: str | None = None
    constants: Mapping[str, Any] = field(default_factory=dict)
    labels: str | os.PathLike[str] | None = None
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            _require(name, getattr(self, name), getattr(self, name) in (None, *choices), " or ".join(choices))
        _require("size", self.size, self.size is None or _is_pair(self.size), "[height, width]")
        one_side = _is_count(self.resize)
        fine = self.resize is None or one_side or _is_pair(self.resize)
        _require("resize", self.resize, fine, "the shorter side or [height, width]")
        _require("scale", self.scale, self.scale is None or _is_number(self.scale), "a number")
        for name in ("mean", "std"):
            found = getattr(self, name)
            entries = found if isinstance(found, (list, tuple)) else [found]
            fine = bool(entries) and all(map(_is_number, entries)) and not (name == "std" and 0 in entries)
            _require(name, found, fine, "a number, or one per channel" + (", not 0" if name == "std" else ""))
        for name in ("input", "labels"):
            found = getattr(self, name)
            _require(name, found, found is None or isinstance(found, (str, os.PathLike)), "text")
        _require("constants", self.constants, isinstance(self.constants, Mapping), "a table of input names")
        if self.size and self.resize and self.crop == "none":
            raise InputError("images cannot be resized twice: give size or resize, or crop = 'center'")


def _require(name: str, found: object, fine: bool, wanted: str) -> None:
    if not fine:
        raise InputError(f"{name} of image data must be {wanted}, got {found!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and np.isfinite(value)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_pair(value: object) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and all(map(_is_count, value))


@dataclass(frozen=True)
class ImageFolder:
    """A folder of images, and what is done to them."""

    path: str | os.PathLike[str]
    preprocessing: Preprocessing = Preprocessing()

    def __str__(self) -> str:
        return str(self.path)

    def rows(self, inputs: Sequence[onnx.ValueInfoProto]) -> list[tuple[str, Callable[[], Row]]]:
        """Each image's name, and what reads it: one row of every input of the model, and its label if there is one."""
        files = image_files(Path(self.path))
        if not files:
            raise InputError(f"the folder {self.path} holds no images ({', '.join(SUFFIXES)})")
        target, constants = _inputs(inputs, self.preprocessing)
        read = _reader(self.preprocessing, target)
        labels = _labels(Path(self.path), files, self.preprocessing.labels)

        def row(file: Path) -> Callable[[], Row]:
            beside = {**constants, **({LABELS: labels[file]} if file in labels else {})}
            return lambda: {target.name: read(file), **beside}

        return [(str(f), row(f)) for f in files if f in labels or not labels]


def image_files(path: Path) -> list[Path]:
    """Images below a folder, sorted; hidden ones are left out. InputError if there is no such folder."""
    if not path.is_dir():
        raise InputError(f"no such data: there is no folder {path}")
    return sorted(
        Path(folder) / name
        for folder, _, names in os.walk(path, followlinks=True)
        for name in names
        if name.lower().endswith(SUFFIXES) and not name.startswith(".")
    )


def _labels(root: Path, files: Sequence[Path], table: str | os.PathLike[str] | None) -> dict[Path, NDArray[Any]]:
    """The label of each file, as an array of one entry; empty if none is known."""
    if table is not None:
        listed = _listed(Path(table))
        known = [f for f in files if f.relative_to(root).as_posix() in listed]
        found = _typed([listed[f.relative_to(root).as_posix()] for f in known])
        return {f: found[k : k + 1] for k, f in enumerate(known)}
    classes = sorted({f.relative_to(root).parts[0] for f in files if f.parent != root})
    if not classes:
        return {}
    if stray := next((f for f in files if f.parent == root), None):
        raise InputError(f"{stray} lies beside the sub-folders that give the labels: move it, or give a labels file")
    return {f: np.array([classes.index(f.relative_to(root).parts[0])]) for f in files}


def _listed(table: Path) -> dict[str, str]:
    """Labels by file from a CSV file; a first row `file,label` is its heading."""
    try:
        with table.open(newline="", encoding="utf-8") as stream:
            rows = [r for r in csv.reader(stream) if r]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read the labels {table}: {error}") from error
    if wrong := next((r for r in rows if len(r) != 2), None):
        raise InputError(f"the labels {table} hold the row {','.join(wrong)!r}: write file,label")
    if rows and [c.strip().lower() for c in rows[0]] == ["file", "label"]:
        rows = rows[1:]
    return {file.strip(): label.strip() for file, label in rows}


def _typed(labels: Sequence[str]) -> NDArray[Any]:
    """Whole numbers if all are, else text."""
    try:
        return np.array([int(n) for n in labels], np.int64)
    except ValueError:
        return np.array(labels)


@dataclass(frozen=True)
class _Input:
    """A model's input of images: name, type, and the sizes that are fixed (else 0)."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, int, int, int]


def _inputs(inputs: Sequence[onnx.ValueInfoProto], stated: Preprocessing) -> tuple[_Input, dict[str, NDArray[Any]]]:
    """The input that gets the images, and one row of each other input."""
    kinds = {i.name: i.type.tensor_type for i in inputs}
    left = [n for n in kinds if n not in stated.constants]
    name = left[0] if stated.input is None and len(left) == 1 else stated.input
    if name not in kinds or set(kinds) != {name, *stated.constants}:
        raise InputError(
            f"the model has inputs {list(kinds)}, image data is for {stated.input or 'one of them'} and has constants"
            f" for {list(stated.constants)}: state `input` and `constants` so that each input gets something"
        )
    dims = [d.dim_value for d in kinds[name].shape.dim]
    if len(dims) != 4:
        raise InputError(f"input {name!r} has {len(dims)} axes: images need four")
    types = {n: helper.tensor_dtype_to_np_dtype(kind.elem_type) for n, kind in kinds.items()}
    try:
        constants = {n: np.asarray(value, types[n])[None] for n, value in stated.constants.items()}
    except (TypeError, ValueError) as error:
        raise InputError(f"constants of image data must be numbers or lists of them: {error}") from error
    return _Input(name, types[name], (dims[0], dims[1], dims[2], dims[3])), constants


def _reader(stated: Preprocessing, target: _Input) -> Callable[[Path], NDArray[Any]]:
    """What makes one row of the model's input from a file."""
    layout = stated.layout or _layout(target)
    at = 1 if layout == "NCHW" else 3
    channels = target.shape[at]
    color = stated.color or ("L" if channels == 1 else "RGB")
    made = 1 if color == "L" else 3
    if channels not in (0, made):
        raise InputError(
            f"input {target.name!r} has {channels} channels in layout {layout}, {color} images have {made}"
        )
    height, width = target.shape[2:] if at == 1 else target.shape[1:3]
    own = (height, width) if height and width and not (stated.resize and stated.crop == "none") else None
    size = tuple(stated.size) if stated.size else own
    scale = (1 / 255 if target.dtype.kind == "f" else 1) if stated.scale is None else stated.scale
    mean, std = (_per_channel(name, getattr(stated, name), made) for name in ("mean", "std"))

    def read(file: Path) -> NDArray[Any]:
        pixels = _decoded(file, stated, "L" if color == "L" else "RGB", size)
        pixels = pixels[..., ::-1] if color == "BGR" else pixels.reshape(*pixels.shape[:2], made)
        row = (pixels * np.float32(scale) - mean) / std
        row = row if target.dtype.kind == "f" else np.rint(row)
        row = row.transpose(2, 0, 1) if at == 1 else row
        return np.ascontiguousarray(row[None].astype(target.dtype))

    return read


def _layout(target: _Input) -> str:
    found = [name for name, at in (("NCHW", 1), ("NHWC", 3)) if target.shape[at] in (1, 3)]
    if len(found) != 1:
        raise InputError(f"input {target.name!r} of shape {list(target.shape)} may be NCHW or NHWC: state the layout")
    return found[0]


def _per_channel(name: str, value: Number | Sequence[Number], channels: int) -> NDArray[np.float32]:
    found = np.atleast_1d(np.asarray(value, np.float32))
    if found.size not in (1, channels):
        raise InputError(f"{name} of image data has {found.size} entries, the images have {channels} channels")
    return found


def _decoded(file: Path, stated: Preprocessing, mode: str, size: tuple[int, ...] | None) -> NDArray[np.uint8]:
    """Pixels, (H, W) or (H, W, 3)."""
    try:
        from PIL import Image
    except ImportError as error:
        raise InputError("reading images needs Pillow: pip install 'onnxprune[images]'") from error
    try:
        with Image.open(file) as opened:
            image = opened.convert(mode)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"cannot read the image {file}: {error}") from error
    height, width = _resized((image.height, image.width), stated, size)
    if (image.height, image.width) != (height, width):
        image = image.resize((width, height), Image.Resampling[stated.interpolation.upper()])
    if size and (height, width) != size:
        if height < size[0] or width < size[1]:
            raise InputError(
                f"{file} is {height} x {width}, too small for a crop of {size[0]} x {size[1]}: resize it first"
            )
        top, left = round((height - size[0]) / 2), round((width - size[1]) / 2)
        image = image.crop((left, top, left + size[1], top + size[0]))
    return np.asarray(image)


def _resized(found: Pair, stated: Preprocessing, size: tuple[int, ...] | None) -> Pair:
    """(height, width) after resizing, before the crop."""
    if isinstance(stated.resize, int):
        return _shorter_side(found, stated.resize)
    if stated.resize:
        return stated.resize[0], stated.resize[1]
    if size is None:
        return found
    if stated.crop != "center":
        return size[0], size[1]
    factor = max(size[0] / found[0], size[1] / found[1])
    return max(size[0], round(found[0] * factor)), max(size[1], round(found[1] * factor))


def _shorter_side(found: Pair, pixels: int) -> Pair:
    """As torchvision's Resize: the longer side is rounded down."""
    height, width = found
    return (pixels, pixels * width // height) if height <= width else (pixels * height // width, pixels)
