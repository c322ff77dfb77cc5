"""Tests whether the layer works in an unrelated network if only its size is given.

A small convolutional autoencoder without any other part of gmvq gets each quantizer with ``dim`` and
``codebook_size`` only, and is trained with mean squared error + the quantizer's loss on crops of the bundled
photographs. Usage is the fraction of the codebook among the hard codes of 2,560 new crops of the training photographs,
and separately of the three held-out photographs; perplexity and PSNR are those of the held-out ones.

    python benchmarks/drop_in.py --out benchmarks/results/drop_in.json
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gmvq
from gmvq.data import Loader, held_out_batches
from gmvq.data.writing import write_json
from gmvq.metrics import CodebookStatistics
from gmvq.modalities import Image
from gmvq.training.provenance import commit, hardware, versions


class Network(nn.Module):
    """An unrelated autoencoder: latents (B, dim, H / 4, W / 4)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 32, 4, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 4, 2, 1), nn.ReLU(), nn.Conv2d(64, dim, 3, 1, 1)
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(dim, 64, 3, 1, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(64, 32, 4, 2, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(32, 3, 4, 2, 1),
        )


def _peer(dim: int, codebook_size: int) -> nn.Module:
    from vector_quantize_pytorch import VectorQuantize

    return VectorQuantize(dim=dim, codebook_size=codebook_size)


LAYERS: dict[str, Callable[[int, int], nn.Module]] = {
    "gmvq.GaussianMixtureQuantizer": gmvq.GaussianMixtureQuantizer,
    "gmvq.VectorQuantizer": gmvq.VectorQuantizer,
    "vector_quantize_pytorch.VectorQuantize": _peer,
}


def measure(name: str, dim: int, codebook_size: int, steps: int, seed: int) -> dict[str, float | int | str]:
    """Trains one network and evaluates it on the held-out photographs."""
    torch.manual_seed(seed)
    data = Image().load("bundled:photographs")
    network, quantizer = Network(dim), LAYERS[name](dim, codebook_size)
    optimizer = torch.optim.Adam([*network.parameters(), *quantizer.parameters()], lr=1e-3)
    window = data.modality.window
    loader = Loader(data.train, 32, window=window, size=32, mirror=True, seed=seed, windows_per_item=100)

    def forward(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        latents = network.encoder(images).movedim(1, -1)
        # both libraries take (B, tokens, dim)
        values, codes, loss, *_ = quantizer(latents.flatten(1, 2))
        decoded = network.decoder(values.reshape(latents.shape).movedim(-1, 1))
        return decoded, codes, loss.sum()

    start = time.perf_counter()
    for batch in loader.iterate(0, steps):
        images = data.signal.checked(batch.items)
        decoded, _, loss = forward(images)
        optimizer.zero_grad()
        (F.mse_loss(decoded, images) + loss).backward()
        optimizer.step()
    seconds = time.perf_counter() - start

    network.eval()
    quantizer.eval()
    learned, use, errors = CodebookStatistics(codebook_size), CodebookStatistics(codebook_size), []
    with torch.no_grad():
        for batch in loader.iterate(steps, steps + 80):
            learned.update(forward(data.signal.checked(batch.items))[1])
        for batch in held_out_batches(data.held_out, 1):
            images = data.signal.checked(batch.items)
            images = images[..., : images.shape[-2] // 4 * 4, : images.shape[-1] // 4 * 4]
            decoded, codes, _ = forward(images)
            use.update(codes)
            errors.append(F.mse_loss(decoded.clamp(0, 1), images).item())
    psnr = statistics.mean(-10 * torch.tensor(error).log10().item() for error in errors)
    row = {"layer": name, "dim": dim, "codebook_size": codebook_size, "steps": steps, "seed": seed}
    metrics = {"usage": learned.usage, "usage_held_out": use.usage, "perplexity": use.perplexity}
    return {**row, "psnr": psnr, **metrics, "seconds": seconds}


def main() -> None:
    """Measures all layers, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--codebook-size", type=int, default=512)
    parser.add_argument("--dims", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--layers", nargs="+", default=list(LAYERS)[:2], choices=list(LAYERS))
    parser.add_argument("--out", type=Path, default=Path("runs/drop_in.json"))
    arguments = parser.parse_args()
    rows = []
    for name in arguments.layers:
        for dim in arguments.dims:
            for seed in range(arguments.seeds):
                rows.append(measure(name, dim, arguments.codebook_size, arguments.steps, seed))
                print({key: round(value, 3) if isinstance(value, float) else value for key, value in rows[-1].items()})
    where = {"versions": versions(), "hardware": hardware(), "commit": commit()}
    write_json(arguments.out, {"protocol": (__doc__ or "").strip(), **where, "rows": rows})


if __name__ == "__main__":
    main()
