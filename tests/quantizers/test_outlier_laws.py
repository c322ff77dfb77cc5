"""What one far latent, or one far code, does to all others: nothing that lasts."""

import math

import pytest
import torch
from exceptions import DIRECTION, EXCEPTIONS
from members import DIM, SINGLE, SIZE, latents, trained

from gmvq.quantizers import (
    Affine,
    GaussianMixtureQuantizer,
    InPlaceStep,
    Residual,
    VectorQuantizer,
)


def is_table(tensor):
    return tensor.ndim == 2 and len(tensor) == SIZE and tensor.shape[1] > 1


FAR_CODES = {name: make for name, make in SINGLE.items() if any(map(is_table, make().state_dict().values()))}


@pytest.mark.parametrize("far", [1e6, -1e10, math.inf, math.nan])
@pytest.mark.parametrize("name", FAR_CODES)
def test_a_far_code_changes_no_other_code(name, far):
    reason = EXCEPTIONS["far codes"].get(name)
    if reason is not None and (math.isfinite(far) or reason != DIRECTION):
        pytest.skip(reason)
    quantizer = trained(SINGLE[name]).eval()
    rows = latents(500)
    before = quantizer.encode(rows)
    state = quantizer.state_dict()
    for tensor in state.values():
        if is_table(tensor):
            tensor[5] = far
    quantizer.load_state_dict(state)
    others = before != 5
    assert torch.equal(quantizer.encode(rows)[others], before[others])


LEARNERS = {
    "vector": lambda: VectorQuantizer(DIM, 32),
    "vector-revival": lambda: VectorQuantizer(DIM, 32, revive_below=1.0),
    "vector-affine": lambda: VectorQuantizer(DIM, 32, parts=[Affine()]),
    "vector-huh": lambda: VectorQuantizer(
        DIM, 32, decay=None, revive_below=1.0, parts=[Affine(), InPlaceStep(4.0, steps=2)]
    ),
    "mixture": lambda: GaussianMixtureQuantizer(DIM, 32),
    "mixture-code": lambda: GaussianMixtureQuantizer(DIM, 32, variance="code"),
    # codes with learned weights starve by themselves, the sooner the shorter they remember
    "mixture-weights": lambda: GaussianMixtureQuantizer(DIM, 32, learned=("mixture_weights",), decay=0.95),
    "mixture-elbo": lambda: GaussianMixtureQuantizer(DIM, 32, objective="elbo"),
    "residual": lambda: Residual([GaussianMixtureQuantizer(DIM, 32), VectorQuantizer(DIM, 32)]),
}
"""Members whose codes, or what places them, are running statistics."""


def error_after(make, far):
    """Squared error of new latents after 305 steps, with one latent at a far place in steps 0 to 4 and 100 to 104."""
    torch.manual_seed(0)
    quantizer, generator = make(), torch.Generator().manual_seed(1)
    for step in range(305):
        rows = torch.randn(256, DIM, generator=generator)
        if far is not None and step % 100 < 5 and step < 200:
            rows[7] = far
        with torch.no_grad():
            quantizer(rows)
    rows = torch.randn(2048, DIM, generator=generator)
    return (quantizer.eval()(rows).values - rows).square().mean().item()


@pytest.mark.parametrize("make", LEARNERS.values(), ids=LEARNERS.keys())
@torch.no_grad()
def test_far_latents_in_training_have_left_200_steps_later(make):
    assert error_after(make, 1e6) <= 1.1 * error_after(make, None)
