"""A small network that tells classes of images, and whose features say what an image is of."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from gmvq.networks.convolutional import Encoder


@dataclass(frozen=True)
class ClassifierConfig:
    """Size of a classifier.

    Args:
        channels: Channels of the images.
        classes: Number of classes.
        width: Channels of its convolutions.
        features: Features of an image, F.
        halvings: Halvings of the sides before features are averaged over places.
        blocks: Residual blocks.

    Raises:
        ValueError: If a number is not at least 1.
    """

    channels: int
    classes: int
    width: int = 64
    features: int = 128
    halvings: int = 2
    blocks: int = 2

    def __post_init__(self) -> None:
        for name in ("channels", "classes", "width", "features", "halvings", "blocks"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise ValueError(f"'{name}' must be an integer of at least 1, got {getattr(self, name)!r}. Use 2.")


class Classifier(nn.Module):
    """Images to logits of their classes, by way of features.

    Args:
        config: Its size.

    Shape:
        ``(B, channels, H, W)`` with H and W multiples of 2 to the number of halvings -> logits ``(B, classes)``.
    """

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        widths = (config.width,) * config.halvings
        self.encoder = Encoder(config.channels, config.features, widths, config.blocks, "batch")
        self.head = nn.Linear(config.features, config.classes)

    def features(self, images: Tensor) -> Tensor:
        """Features of images, ``(B, F)``: the encoder's, averaged over places."""
        return self.encoder(images).mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the classes of images."""
        return self.head(self.features(images).relu())
