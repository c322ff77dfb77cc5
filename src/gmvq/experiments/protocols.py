"""Protocols: data, network and training of a comparison. Contenders vary only the quantizer.

A recipe is the protocol of one comparison; those in ``PROTOCOLS`` are frozen, so that rows compare over time.

Their networks are SQ-VAE's (Takida et al., 2022, https://arxiv.org/abs/2205.07547), the training of the full ones is
that of Huh et al. (2023, https://arxiv.org/abs/2305.08842). A medium protocol has the full one's batches, learning rate
and its course, in an eighth of the steps. A short protocol has the same data and networks and 2,000 steps of 64 images,
averaged weights, and a learning rate for this number of steps. A grid has a narrower network and half of these images,
for many settings of the training, see :mod:`gmvq.experiments.grid`. All have the Gaussian likelihood with its variance
at the maximum-likelihood value: its gradient has the direction of the mean squared error's, and a different length, and
a quantizer's terms in addition to a mean squared error are scaled accordingly.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from gmvq.experiments import grid
from gmvq.modalities import Data, Image, fingerprint
from gmvq.models import AutoencoderConfig
from gmvq.stages.data import DataConfig
from gmvq.stages.tokenizer import Run, fitted
from gmvq.training import Training

LATENT_DIM = 64
"""Features of the latents from the networks. Quantizers may project them: codes may have fewer features, and if each
feature is a digit, as in FSQ, a 1x1 convolution maps them to the number of digits."""


@dataclass(frozen=True)
class Protocol:
    """Settings that all rows of a table share.

    Args:
        name: Name on the command line.
        version: Version; rows of different versions are kept in separate tables.
        title: Name in tables.
        data_hash: Fingerprint of the data, see :func:`gmvq.data.fingerprint`; None if it is not known.
        tokens: Codes of a held-out item along each axis.
        run: The run, with an empty path and any quantizer.
    """

    name: str
    version: int
    title: str
    data_hash: str | None
    tokens: tuple[int, ...]
    run: Run

    @classmethod
    def of(cls, recipe: Run, data: Data) -> Self:
        """Creates the protocol of a comparison on a recipe."""
        recipe = fitted(recipe, data)
        stride, size = recipe.model.stride, recipe.data.size
        tokens = tuple(-(-(size or length) // stride) for length in data.held_out.sizes[0])
        return cls(recipe.name, 1, recipe.name, fingerprint(data), tokens, recipe)

    def at(self, source: str) -> Self:
        """Returns the protocol with the path of the data."""
        return replace(self, run=replace(self.run, data=replace(self.run.data, source=source)))

    def check_data(self, data: Data) -> None:
        """Checks that data are those of the protocol.

        Raises:
            ValueError: If the fingerprint differs.
        """
        found = fingerprint(data)
        if self.data_hash is not None and found != self.data_hash:
            items = data.modality.items
            raise ValueError(
                f"'--data' must be the data of {self.name}, fingerprint {self.data_hash[:12]}, got {data.name}, "
                f"{found[:12]} ({len(data.train):,} training and {len(data.held_out):,} held-out {items}). Give their "
                "path, see 'gmvq compare --help'; for data of your own, 'gmvq compare folder --data folder=PATH'."
            )

    def described(self, data: Data) -> dict[str, Any]:
        """Returns the protocol's record in a table as JSON types, without local paths and settings of contenders."""
        shared = json.loads(json.dumps(self.run.described()))
        for name in ("quantizer", "quantizer_options", "code_dim"):
            del shared["model"][name]
        del shared["training"]["seed"], shared["data"]["source"]
        return {
            "name": self.name,
            "version": self.version,
            "title": self.title,
            "data": {
                "name": Path(data.name).name,
                "fingerprint": fingerprint(data),
                "train": len(data.train),
                "held_out": min(self.run.data.evaluated or len(data.held_out), len(data.held_out)),
            },
            "tokens": list(self.tokens),
            "codebook_size": self.run.model.codebook_size,
            "run": shared,
        }


_MODEL = AutoencoderConfig(
    modality=Image(channels=3),
    codebook_size=1024,
    code_dim=LATENT_DIM,
    width=64,
    downsampling=4,
    blocks=2,
    network="sq-vae",
)
# with the learning rate of Huh et al. every network would be undertrained after 1/56 of their steps
_SHORT = Training(
    steps=2000,
    batch_size=64,
    learning_rate=1e-3,
    warmup_steps=100,
    final_learning_rate_fraction=0.0,
    weight_decay=1e-4,
    betas=(0.9, 0.95),
    averaging_decay=0.99,
    evaluate_every=0,
    checkpoint_every=1000,
)


def _long(steps: int) -> Training:
    """Returns training in batches of 32, the first ninth of the steps warm-up, without averaged weights."""
    return replace(
        _SHORT,
        steps=steps,
        batch_size=32,
        learning_rate=1e-4,
        warmup_steps=steps // 9,
        averaging_decay=0.0,
        checkpoint_every=2500,
        log_every=100,
    )


def _full(images: int) -> Training:
    """Returns training over 90 epochs, 10 of them warm-up."""
    epoch = images // 32
    return replace(_long(90 * epoch), checkpoint_every=2 * epoch)


_CIFAR10_HASH = "94d27d7faa9121c3bc0e378b7df6041fe15021d720b2d22cff41490bdd91b646"
_FASHION_MNIST_HASH = "57d595afb8fb14e5e088c77ab74d5009774a7365d639ed95e2302e26158c29be"
_CELEBA_8000_HASH = "c4a5f5aefcc9b64f0047f0eed7f8512bfb7a442d6d1f583d535431476c115c3f"
_CIFAR10_SMALL_HASH = "4deb88b152cb6946ad7490900161819c72cf30e60a86269822109fec6a1166b7"
_CIFAR10 = DataConfig("", train_limit=40_000)
_FASHION_MNIST = DataConfig("", train_limit=50_000)
_FACES = replace(_MODEL, blocks=6)


def _protocol(
    name: str,
    title: str,
    data_hash: str | None,
    tokens: tuple[int, ...],
    data: DataConfig,
    model: AutoencoderConfig,
    training: Training,
) -> Protocol:
    return Protocol(name, 1, title, data_hash, tokens, Run(name, data, model, training))


def _grid(short: Protocol) -> Protocol:
    name, run = f"{short.name.removesuffix('-short')}-grid", short.run
    data, model = replace(run.data, evaluated=1000), replace(run.model, width=32)
    steps = grid.IMAGES // run.training.batch_size
    training = replace(run.training, steps=steps, warmup_steps=steps // grid.WARM_UP)
    return replace(short, name=name, run=Run(name, data, model, training))


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        _protocol("cifar10-8x8-k1024-short", "CIFAR-10, 8x8 codes", _CIFAR10_HASH, (8, 8), _CIFAR10, _MODEL, _SHORT),
        # the behavior of a codebook with little training data
        _protocol(
            "cifar10-8x8-k1024-small",
            "CIFAR-10, 8x8 codes, 1,000 training images",
            _CIFAR10_SMALL_HASH,
            (8, 8),
            replace(_CIFAR10, train_limit=1000),
            _MODEL,
            _SHORT,
        ),
        _protocol(
            "fashion-mnist-7x7-k1024-short",
            "Fashion-MNIST, 7x7 codes",
            _FASHION_MNIST_HASH,
            (7, 7),
            _FASHION_MNIST,
            replace(_MODEL, modality=Image(channels=1)),
            _SHORT,
        ),
        # with crops of a quarter of a face, a step of 64 costs as much as on CIFAR-10; evaluation is on whole faces
        _protocol(
            "celeba64-16x16-k1024-short",
            "CelebA 64x64, 16x16 codes",
            _CELEBA_8000_HASH,
            (16, 16),
            DataConfig("", Image(face_side=64), size=32),
            _FACES,
            _SHORT,
        ),
        _protocol(
            "cifar10-8x8-k1024-medium", "CIFAR-10, 8x8 codes", _CIFAR10_HASH, (8, 8), _CIFAR10, _MODEL, _long(14_000)
        ),
        _protocol(
            "cifar10-8x8-k1024-full", "CIFAR-10, 8x8 codes", _CIFAR10_HASH, (8, 8), _CIFAR10, _MODEL, _full(40_000)
        ),
        _protocol(
            "fashion-mnist-7x7-k1024-full",
            "Fashion-MNIST, 7x7 codes",
            _FASHION_MNIST_HASH,
            (7, 7),
            _FASHION_MNIST,
            replace(_MODEL, modality=Image(channels=1)),
            _full(50_000),
        ),
        # the whole CelebA with its official split, which is not available to us: the first row adds their fingerprints
        _protocol(
            "celeba64-16x16-k1024-full",
            "CelebA 64x64, 16x16 codes",
            None,
            (16, 16),
            DataConfig("", Image(face_side=64)),
            _FACES,
            _full(162_770),
        ),
        _protocol(
            "celeba128-32x32-k1024-full",
            "CelebA 128x128, 32x32 codes",
            None,
            (32, 32),
            DataConfig("", Image(face_side=128)),
            _FACES,
            _full(162_770),
        ),
    )
}
"""The frozen protocols by name."""

PROTOCOLS |= {grid.name: grid for grid in (_grid(one) for name, one in PROTOCOLS.items() if name.endswith("-short"))}
