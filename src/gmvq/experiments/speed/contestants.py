"""Contestants of each task: functions that prepare one call on latents and codes of a shape.

::

    TASKS[task][name](shape) --> call() --> codes, a codebook, or nothing

Other libraries are imported on use: one that is not installed raises ImportError, and is left out.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from gmvq.experiments.speed.naive import NaiveMixture
from gmvq.experiments.speed.shapes import Shape, clustered, drawn, generator
from gmvq.kernels import nearest_code
from gmvq.quantizers import GaussianMixtureQuantizer, GumbelSoftmax, VectorQuantizer
from gmvq.quantizers.mixture import LATENT_WEIGHT
from gmvq.quantizers.parts.clustering import k_means

Call = Callable[[], Any]
Maker = Callable[[Shape], Call]

OURS = "gmvq"
PRODUCT = "product"
CDIST = "cdist"
PEER = "vector-quantize-pytorch"
FAISS = "faiss"
NAIVE = "naive"
LABELS = {
    OURS: "gmvq",
    PRODUCT: "the product alone",
    CDIST: "torch.cdist + argmin",
    PEER: "vector-quantize-pytorch",
    FAISS: "faiss",
    NAIVE: "GM-VQ by plain autograd",
}
DECAY, COMMITMENT, ITERATIONS = 0.99, 0.25, 10
PRODUCT_BLOCKS = (
    (256, 1024),
    (256, 4096),
    (1024, 1024),
    (1024, 4096),
    (4096, 1024),
    (256, 1 << 30),
    (1 << 30, 1 << 30),
)
"""Block sizes in rows and codes that are tried for the bare product; the last is the whole matrix."""


def peer(module: str) -> ModuleType:
    """Imports another library.

    Raises:
        ImportError: If it is not installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of their imports are irrelevant here
        return importlib.import_module(module)


def nearest_ours(shape: Shape) -> Call:
    """Prepares the kernel that every quantizer of gmvq uses."""
    latents, codes = drawn(shape)
    return lambda: nearest_code(latents, codes)


def product(shape: Shape, rows: int, columns: int) -> Call:
    """Prepares the bare product of latents and codes, block by block into one buffer: a lower bound of the time."""
    latents, codes = drawn(shape)
    buffer = torch.empty(min(rows, shape.rows) * min(columns, shape.codes))
    pairs = [
        (left, right.T, buffer[: len(left) * len(right)].view(len(left), len(right)))
        for left in latents.split(rows)
        for right in codes.split(columns)
    ]

    def call() -> None:
        for left, right, out in pairs:
            torch.mm(left, right, out=out)

    return call


def nearest_cdist(shape: Shape) -> Call:
    """Prepares the common solution without a library."""
    latents, codes = drawn(shape)
    return lambda: torch.cdist(latents, codes).argmin(-1)


def nearest_faiss(shape: Shape) -> Call:
    """Prepares exact search; the index is built in advance."""
    faiss = peer("faiss")
    faiss.omp_set_num_threads(torch.get_num_threads())
    latents, codes = (rows.numpy() for rows in drawn(shape))
    index = faiss.IndexFlatL2(shape.features)
    index.add(codes)
    return lambda: index.search(latents, 1)[1][:, 0]


def nearest_peer(shape: Shape) -> Call:
    """Prepares its quantizer in evaluation mode."""
    latents, module = drawn(shape)[0][None], vector_peer(shape).eval()

    def call() -> Tensor:
        with torch.no_grad():
            return module(latents)[1]

    return call


def vector_peer(shape: Shape) -> nn.Module:
    """Creates its VectorQuantize with our settings, on the drawn codes."""
    module = peer("vector_quantize_pytorch").VectorQuantize(
        dim=shape.features,
        codebook_size=shape.codes,
        decay=DECAY,
        commitment_weight=COMMITMENT,
        rotation_trick=False,  # straight-through, like ours
    )
    state = module.state_dict()
    for name in ("_codebook.embed", "_codebook.embed_avg"):
        state[name] = drawn(shape)[1][None]
    state["_codebook.cluster_size"] = torch.ones_like(state["_codebook.cluster_size"])
    module.load_state_dict(state)
    return module


def vector_ours(shape: Shape) -> VectorQuantizer:
    """Creates VectorQuantizer with moving averages, on the drawn codes."""
    module = VectorQuantizer(shape.features, shape.codes, decay=DECAY, commitment_weight=COMMITMENT, kmeans_start=False)
    _place(module, drawn(shape)[1])
    return module


def mixture_ours(shape: Shape) -> GaussianMixtureQuantizer:
    """Creates GM-VQ as published, on the drawn codes: relaxed sample, ALBO, codebook by gradient."""
    module = GaussianMixtureQuantizer(
        shape.features,
        shape.codes,
        codebook_dim=shape.features,
        estimator=GumbelSoftmax(),
        learned=("codebook",),
    )
    variance = torch.tensor(variance_of(shape)).reshape(1, 1)
    weights = torch.full_like(variance, float(shape.rows * shape.features))
    _place(module, drawn(shape)[1], {"variance.sums": weights * variance, "variance.weights": weights})
    return module


def mixture_naive(shape: Shape) -> NaiveMixture:
    """Creates the same equations in plain autograd."""
    variance = variance_of(shape)
    return NaiveMixture(drawn(shape)[1], variance, weight=LATENT_WEIGHT * 2 * variance / shape.features)


def variance_of(shape: Shape) -> float:
    """Computes the mixture's maximum-likelihood variance for the drawn latents and codes, from at most 256 latents.

    The posterior is then as soft as in training: some codes share a latent, most have no weight for it.
    """
    latents, codes = drawn(shape)
    latents = latents[:256]
    squares = (latents - codes[nearest_code(latents, codes)]).square().mean()
    return max(float(squares), 1e-3)  # 0 in the smallest shape, whose only latent equals its code


def _place(module: nn.Module, codes: Tensor, more: dict[str, Tensor] | None = None) -> None:
    """Initializes a quantizer with given codes ``(K, L)``: its first batch has too few rows for k-means."""
    state, counts = module.state_dict(), torch.ones(len(codes))
    state |= {"moving.codes": codes, "moving.sums": codes.clone(), "moving.counts": counts, **(more or {})}
    state["moving.placed"] = counts.clone()
    if "learned_codes" in state:
        state["learned_codes"] = codes
    module.load_state_dict(state)


def step(make: Callable[[Shape], nn.Module]) -> Maker:
    """Prepares a training step: forward, backward to latents and parameters, and updates of the module's statistics."""

    def prepare(shape: Shape) -> Call:
        module, latents = make(shape).train(), drawn(shape)[0][None]
        upstream = torch.randn(latents.shape, generator=generator(1))  # the gradient from a decoder

        def call() -> None:
            module.zero_grad(set_to_none=True)
            leaves = latents.detach().requires_grad_()
            values, _, loss, *_ = module(leaves)
            torch.autograd.backward((values, loss), (upstream, torch.ones_like(loss)))

        return call

    return prepare


def kmeans_ours(shape: Shape) -> Call:
    """Prepares Lloyd's algorithm as quantizers use it for initialization."""
    rows = clustered(shape)
    return lambda: k_means(rows, shape.codes, ITERATIONS)


def kmeans_faiss(shape: Shape) -> Call:
    """Prepares the same number of iterations over all rows."""
    faiss = peer("faiss")
    faiss.omp_set_num_threads(torch.get_num_threads())
    rows = clustered(shape).numpy()

    def call() -> Tensor:
        found = faiss.Kmeans(
            shape.features,
            shape.codes,
            niter=ITERATIONS,
            min_points_per_centroid=1,
            max_points_per_centroid=len(rows),
            seed=0,
        )
        found.train(rows)
        return torch.from_numpy(found.centroids)

    return call


NEAREST, VECTOR_STEP, MIXTURE_STEP, KMEANS = "nearest", "vector-step", "mixture-step", "k-means"
TASKS: dict[str, dict[str, Maker]] = {
    NEAREST: {OURS: nearest_ours, CDIST: nearest_cdist, PEER: nearest_peer, FAISS: nearest_faiss},
    VECTOR_STEP: {OURS: step(vector_ours), PEER: step(vector_peer)},
    MIXTURE_STEP: {OURS: step(mixture_ours), PEER: step(vector_peer), NAIVE: step(mixture_naive)},
    KMEANS: {OURS: kmeans_ours, FAISS: kmeans_faiss},
}
FLOATS = {
    (NEAREST, CDIST): 1.1,
    (NEAREST, PEER): 4.2,
    (VECTOR_STEP, PEER): 6.5,
    (MIXTURE_STEP, PEER): 6.5,
    (MIXTURE_STEP, NAIVE): 8.5,
}
"""Largest number of stored values per latent and code, if any: measured in the memory section, rounded up."""
