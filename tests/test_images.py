"""Folders of images: pixels arrive as stated, labels come from folders or a table, and what is wrong is told."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import onnxprune
from onnxprune.data import ImageFolder, Preprocessing, Samples
from onnxprune.errors import InputError
from onnxprune.graph import Graph
from onnxprune.reading import load
from tests.common import build


def model(shape: str, kind: str = "float") -> Graph:
    return load(build(f"({kind}[{shape}] x) => ({kind}[{shape}] y) {{ y = Identity(x) }}"))


NCHW, NHWC, GREY = model("N,3,4,6"), model("N,4,6,3"), model("N,1,4,6")
OPEN = model("N,3,H,W")


def picture(height: int, width: int) -> np.ndarray[Any, Any]:
    """Colours that tell where a pixel was: red is its row, green its column, blue 200; (H, W, 3)."""
    row, column = np.mgrid[:height, :width]
    return np.stack([row, column, np.full_like(row, 200)], -1).astype(np.uint8)


def put(path: Path, pixels: np.ndarray[Any, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def first(folder: Path, graph: Graph = NCHW, **stated: Any) -> np.ndarray[Any, Any]:
    """What the model gets for the first image."""
    return next(iter(Samples(graph, ImageFolder(folder, Preprocessing(**stated)))))["x"][0]


# preprocessing
def test_pixels_arrive_in_the_layout_and_order_of_the_model(tmp_path: Path) -> None:
    pixels = picture(4, 6)
    put(tmp_path / "a.png", pixels)
    np.testing.assert_allclose(first(tmp_path), pixels.transpose(2, 0, 1) / 255, rtol=1e-6)
    np.testing.assert_allclose(first(tmp_path, NHWC), pixels / 255, rtol=1e-6)
    np.testing.assert_array_equal(first(tmp_path, scale=1, color="BGR"), pixels.transpose(2, 0, 1)[::-1])
    grey = np.asarray(Image.fromarray(pixels).convert("L"))
    np.testing.assert_array_equal(first(tmp_path, GREY, scale=1), grey[None])
    np.testing.assert_array_equal(first(tmp_path, OPEN, scale=1), pixels.transpose(2, 0, 1))
    put(tmp_path / "a.png", picture(3, 6))
    np.testing.assert_array_equal(first(tmp_path, model("N,3,W,3"), layout="NHWC", scale=1), picture(3, 6))


def test_scale_mean_and_std_are_of_the_channels_as_they_arrive(tmp_path: Path) -> None:
    put(tmp_path / "a.png", picture(4, 6))
    got = first(tmp_path, color="BGR", scale=0.5, mean=[100, 1, 2], std=[1, 2, 4])
    want = (picture(4, 6)[..., ::-1] * 0.5 - [100, 1, 2]) / [1, 2, 4]
    np.testing.assert_allclose(got, want.transpose(2, 0, 1))


@pytest.mark.parametrize(("kind", "options", "offset"), [("uint8", {}, 0), ("int8", {"mean": 128}, -128)])
def test_whole_numbers_are_not_scaled(kind: str, options: dict[str, Any], offset: int, tmp_path: Path) -> None:
    put(tmp_path / "a.png", picture(4, 6))
    got = first(tmp_path, model("N,3,4,6", kind), **options)
    assert got.dtype == kind
    np.testing.assert_array_equal(got.astype(int), picture(4, 6).transpose(2, 0, 1).astype(int) + offset)


# options, sizes of the image, of the result, and the row and column of its first pixel
CROPS: list[tuple[dict[str, Any], tuple[int, int], tuple[int, int], tuple[int, int]]] = [
    ({"size": [4, 6], "crop": "center", "resize": 8}, (8, 12), (4, 6), (2, 3)),
    ({"size": [4, 6], "crop": "center", "resize": [9, 13]}, (9, 13), (4, 6), (2, 4)),
    ({"size": [5, 5], "resize": 5}, (5, 8), (5, 5), (0, 2)),
    ({"resize": [7, 9], "crop": "none"}, (7, 9), (7, 9), (0, 0)),
    ({"size": [3, 3]}, (3, 3), (3, 3), (0, 0)),
    ({"size": [4, 4], "crop": "center"}, (4, 8), (4, 4), (0, 2)),
    ({}, (5, 7), (5, 7), (0, 0)),
]


@pytest.mark.parametrize(("options", "size", "want", "corner"), CROPS)
def test_crops_that_move_no_pixel(
    options: dict[str, Any], size: tuple[int, int], want: tuple[int, int], corner: tuple[int, int], tmp_path: Path
) -> None:
    put(tmp_path / "a.png", picture(*size))
    got = first(tmp_path, OPEN, scale=1, **options)
    assert (got.shape[1:], tuple(got[:2, 0, 0])) == (want, corner)
    np.testing.assert_array_equal(got[0, :, 0] - corner[0], np.arange(want[0]))


# options, the shape that an image of 60 x 90 gets
SIZES: list[tuple[dict[str, Any], tuple[int, int]]] = [
    ({"resize": 30, "crop": "none"}, (30, 45)),
    ({"resize": 31, "crop": "none"}, (31, 46)),  # 46.5, as torchvision rounds
    ({"resize": [20, 10], "crop": "none"}, (20, 10)),
    ({"resize": 30, "size": [16, 20]}, (16, 20)),
    ({"size": [16, 20]}, (16, 20)),
    ({"size": [16, 20], "crop": "center"}, (16, 20)),
]


@pytest.mark.parametrize(("options", "want"), SIZES)
def test_sizes(options: dict[str, Any], want: tuple[int, int], tmp_path: Path) -> None:
    put(tmp_path / "a.png", picture(60, 90))
    assert first(tmp_path, OPEN, **options).shape == (3, *want)


def test_resizing_is_that_of_the_filter_stated(tmp_path: Path) -> None:
    put(tmp_path / "a.png", np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8))
    made = {name: first(tmp_path, scale=1, interpolation=name) for name in ("nearest", "bilinear", "bicubic")}
    for name, got in made.items():
        with Image.open(tmp_path / "a.png") as image:
            want = image.resize((6, 4), Image.Resampling[name.upper()])
        np.testing.assert_array_equal(got, np.asarray(want).transpose(2, 0, 1))
    assert len({a.tobytes() for a in made.values()}) == 3


# labels
@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """40 images, 4 x 6, of one colour each: 25 cats, 15 dogs; the red tells the number."""
    for k in range(40):
        pixels = np.full((4, 6, 3), k, np.uint8)
        put(tmp_path / ("cat" if k < 25 else "dog") / ("deep" if k % 2 else ".") / f"{k:02}.png", pixels)
    (tmp_path / "cat" / ".hidden.png").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def pairs(folder: Path, limit: int | None = None, **stated: Any) -> Iterator[tuple[int, Any]]:
    """The red of each image, and its label."""
    for feeds, labels in Samples(NCHW, ImageFolder(folder, Preprocessing(scale=1, **stated)), limit).labelled:
        beside = labels["labels"].tolist() if labels else [None] * len(feeds["x"])
        yield from zip(feeds["x"][:, 0, 0, 0].astype(int).tolist(), beside, strict=True)


def test_labels_are_the_sorted_folders(classes: Path) -> None:
    assert dict(pairs(classes)) == {k: int(k >= 25) for k in range(40)}
    assert [label for _, label in pairs(classes, 8)] == [0] * 5 + [1] * 3  # spread over both


def test_labels_from_a_table(classes: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    table = tmp_path_factory.mktemp("t") / "labels.csv"
    table.write_text("file,label\ncat/00.png,7\ncat/deep/01.png, 9\ngone.png,1\n\n")
    assert dict(pairs(classes, labels=table)) == {0: 7, 1: 9}
    table.write_text("cat/00.png,one\ncat/deep/01.png,2\n")
    assert dict(pairs(classes, labels=str(table))) == {0: "one", 1: "2"}
    table.write_text("elsewhere.png,1\n")
    assert set(pairs(classes, labels=table)) == {(k, None) for k in range(40)}


def test_images_without_folders_have_no_labels(tmp_path: Path) -> None:
    for k in range(3):
        put(tmp_path / f"{k}.png", np.full((4, 6, 3), k, np.uint8))
    assert list(pairs(tmp_path)) == [(0, None), (1, None), (2, None)]


def test_the_folder_is_read_again_each_time(classes: Path) -> None:
    data = Samples(NCHW, ImageFolder(classes))
    assert [f["x"].shape[0] for f in data] == [32, 8]
    put(classes / "cat" / "00.png", np.full((4, 6, 3), 255, np.uint8))
    assert next(iter(data))["x"][0].min() == 1


def test_other_inputs_get_constants(classes: Path) -> None:
    graph = load(
        build("(float[N,3,4,6] x, int64[N,2] s) => (float[N,3,4,6] y, int64[N,2] t) { y = Relu(x) t = Abs(s) }")
    )
    for stated in ({}, {"input": "x"}):
        feeds = next(iter(Samples(graph, ImageFolder(classes, Preprocessing(constants={"s": [4, 6]}, **stated)))))
        assert feeds["x"].shape == (32, 3, 4, 6) and feeds["s"].tolist() == [[4, 6]] * 32
    with pytest.raises(InputError, match="constants"):
        Samples(graph, ImageFolder(classes, Preprocessing(input="x")))


# what cannot be used: options, a word of the message
BAD_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"size": 224}, "height, width"),
    ({"size": [4, 0]}, "height, width"),
    ({"size": [4, True]}, "height, width"),
    ({"resize": 0}, "shorter side"),
    ({"resize": "256"}, "shorter side"),
    ({"crop": "middle"}, "center or none"),
    ({"layout": "CHW"}, "NCHW or NHWC"),
    ({"color": "rgb"}, "RGB or BGR or L"),
    ({"scale": "1/255"}, "scale"),
    ({"scale": float("nan")}, "scale"),
    ({"mean": []}, "mean"),
    ({"mean": ["a"]}, "mean"),
    ({"std": [1, 0, 1]}, "not 0"),
    ({"input": 1}, "text"),
    ({"constants": [1]}, "table"),
    ({"interpolation": "best"}, "bicubic"),
    ({"size": [4, 6], "resize": 8, "crop": "none"}, "twice"),
]


@pytest.mark.parametrize(("stated", "word"), BAD_OPTIONS, ids=[str(o) for o, _ in BAD_OPTIONS])
def test_bad_preprocessing(stated: dict[str, Any], word: str) -> None:
    with pytest.raises(InputError, match=word):
        Preprocessing(**stated)


# model, options, a word of the message
MISFITS: list[tuple[Graph, dict[str, Any], str]] = [
    (model("N,4"), {}, "2 axes"),
    (model("N,3,4,3"), {}, "state the layout"),
    (model("N,C,H,W"), {}, "state the layout"),
    (NCHW, {"color": "L"}, "3 channels"),
    (GREY, {"color": "RGB"}, "1 channels"),
    (NCHW, {"mean": [1, 2]}, "2 entries"),
    (NCHW, {"input": "z"}, "'x'"),
    (NCHW, {"constants": {"z": 1}}, "'z'"),
    (load(build("(float[N,3,4,6] x, float[N,2] s) => (float[N,3,4,6] y, float[N,2] t) { y = Relu(x) t = Abs(s) }")),
     {"constants": {"s": "a"}}, "numbers"),
    (NCHW, {"size": [5, 6]}, r"\[1, 3, 5, 6\]"),
    (NCHW, {"resize": 3}, "too small"),
]  # fmt: skip


@pytest.mark.parametrize(("graph", "stated", "word"), MISFITS, ids=[w for _, _, w in MISFITS])
def test_images_that_the_model_does_not_take(graph: Graph, stated: dict[str, Any], word: str, classes: Path) -> None:
    with pytest.raises(InputError, match=word):
        list(Samples(graph, ImageFolder(classes, Preprocessing(**stated))))


def test_folders_that_cannot_be_read(classes: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(InputError, match="--config"):
        Samples(NCHW, classes)
    with pytest.raises(InputError, match="no such data"):
        Samples(NCHW, ImageFolder(classes / "gone"))
    with pytest.raises(InputError, match="holds no images"):
        Samples(NCHW, ImageFolder(tmp_path_factory.mktemp("empty")))
    (classes / "cat" / "00.png").write_bytes(b"\x89PNG, but not quite")
    with pytest.raises(InputError, match=r"00\.png"):
        list(Samples(NCHW, ImageFolder(classes)))
    put(classes / "stray.png", picture(4, 6))
    with pytest.raises(InputError, match=r"stray\.png"):
        Samples(NCHW, ImageFolder(classes))


@pytest.mark.parametrize(
    ("text", "word"), [("a.png,1,2\n", "a.png,1,2"), ("a.png\n", "file,label"), (None, "labels.csv")]
)
def test_tables_that_cannot_be_read(text: str | None, word: str, classes: Path) -> None:
    table = classes / "labels.csv"
    if text is not None:
        table.write_text(text)
    with pytest.raises(InputError, match=word):
        Samples(NCHW, ImageFolder(classes, Preprocessing(labels=table)))


def test_without_pillow(classes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(InputError, match=r"pip install 'onnxprune\[images\]'"):
        list(Samples(NCHW, ImageFolder(classes)))


def test_prune_with_images_measures_top1(tmp_path: Path) -> None:
    """Two classes, dark and light, told apart by the mean of the pixels above a half; 6 of 8 units do nothing."""
    text = """(float[N,1,4,6] x) => (float[N,2] y) <float[8,1,1,1] A, float[8,2] B> {
      h = Conv(x, A) r = Relu(h) p = GlobalAveragePool(r) f = Flatten(p) y = MatMul(f, B) }"""
    proto = build(text)
    a, b = (np.zeros(s, np.float32) for s in ((8, 1, 1, 1), (8, 2)))
    a[:2], b[:2] = 1, [0, 1]
    for tensor, array in zip(proto.graph.initializer, (a, b), strict=True):
        tensor.raw_data = array.tobytes()
    for k in range(10):
        put(tmp_path / ("dark" if k < 5 else "light") / f"{k}.png", np.full((4, 6), k if k < 5 else 200 + k, np.uint8))
    data = ImageFolder(tmp_path, Preprocessing(mean=0.5))
    report = onnxprune.prune(proto, lossless=True, data=data).report
    assert report.params.after == 2 + 4
    assert [(m.stage, m.name, m.value, m.samples) for m in report.metrics] == [
        ("original", "top1", 1.0, 10),
        ("removed", "top1", 1.0, 10),
    ]
