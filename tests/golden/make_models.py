"""Writes ``models``: tiny models as gmvq saved them once, and what they made of two images then.

Run into an empty folder::

    OMP_NUM_THREADS=1 python tests/golden/make_models.py tests/golden/models

After a release, models of later code must not replace them: they stand for the files that users have.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

import gmvq
from gmvq.modalities import Image
from gmvq.types import Batch

QUANTIZERS = ("gaussian-mixture", "vector", "vector-kmeans", "vector-ema", "none")


def blocks(small):
    """Images of 4 x 4 blocks, one for each pixel of small ones."""
    return small.repeat_interleave(4, -1).repeat_interleave(4, -2)


def write_model(folder, quantizer):
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    config = gmvq.AutoencoderConfig(
        quantizer=quantizer, width=8, codebook_size=16, blocks=1, downsampling=4, modality=Image(3), code_dim=4
    )
    model = gmvq.Autoencoder(config)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(400):
        optimizer.zero_grad()
        model(blocks(torch.rand(16, 3, 4, 4))).loss.backward()
        optimizer.step()
    model.calibrate([Batch(blocks(torch.rand(16, 3, 4, 4)))])
    model.eval()
    gmvq.save(model, folder)
    images = blocks((torch.arange(2 * 3 * 3 * 3).reshape(2, 3, 3, 3) ** 2 * 7 % 251).to(torch.uint8))
    codes = model.encode(images).contiguous()
    expected = {"images": images, "codes": codes, "reconstruction": model.decode(codes).contiguous()}
    save_file(expected, folder / "expected.safetensors")


if __name__ == "__main__":
    for name in QUANTIZERS:
        write_model(Path(sys.argv[1]) / name, name)
