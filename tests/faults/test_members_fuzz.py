"""Random configurations of every quantizer, on random latents of all kinds, against float64 definitions.

A failure prints its key: ``GMVQ_FAULTS_CASE=KEY pytest tests/faults/test_members_fuzz.py -k FAMILY`` tries it again. A
key in ``FOUND`` is tried forever.
"""

import os
import warnings

import pytest
import torch
from fault_sizes import SEED, again, size
from member_cases import MAKES, Case, case_of, latents_of, made, mask_of
from member_definitions import commitment_of, of_latents, posterior_of, wrong_codes, wrong_maps
from torch import Tensor

from gmvq import quantizers as q
from gmvq.quantizers.parts.codebook import MovingAverageCodebook

TRIES = int(os.environ.get("GMVQ_FAULTS_TRIES", size(12, 2000)))
FOUND = {
    "gaussian-codes": ["0/30"],
    "implicit": ["0/1288"],
    "joined": ["0/420", "0/1950"],
    "mixture": ["0/26", "0/30", "0/39", "0/49", "0/413", "0/453", "0/833"],
    "nested": ["0/500", "0/641", "0/1968"],
    "random-projection": ["0/18", "0/1368", "0/1572"],
    "residual": ["0/1587"],
    "simvq": ["0/19", "0/35"],
    "stochastic": ["0/26", "0/28", "0/55"],
    "vector": ["0/48"],
}
"""Keys of cases that failed once."""


@pytest.mark.parametrize("name", MAKES)
def test_random_configurations_do_what_their_definition_says(name):
    only = os.environ.get("GMVQ_FAULTS_CASE")
    drawn = [f"{SEED}/{number}" for number in range(TRIES)]
    keys = [only] if only else list(dict.fromkeys([*FOUND.get(name, []), *drawn]))
    failures = []
    for key in keys:
        case = case_of(name, key)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                with torch.autocast("cpu", torch.bfloat16, enabled=case.autocast):
                    attempt(case)
            except Exception as error:  # whatever it is, with its configuration
                if only:
                    raise
                failures.append(
                    f"GMVQ_FAULTS_CASE={key}: {type(error).__name__}: {str(error).splitlines()[0]}\n  {case}"
                )
    assert not failures, "\n".join([again(f"{len(failures)} of {len(keys)} cases of {name}"), *failures[:20]])


@pytest.mark.parametrize("name", [name for name in MAKES if name not in ("gaussian", "channel-first")])
@torch.no_grad()
def test_definitions_notice_another_code(name):
    changed, noticed = 0, 0
    for number in range(6):
        case = case_of(name, f"others/{number}")._replace(dtype=torch.float32, latents="ordinary", seed=number)
        torch.manual_seed(number)
        quantizer, generator = made(case), torch.Generator().manual_seed(number)
        sizes = torch.tensor(quantizer.codebook_sizes).reshape(quantizer.code_shape)
        if (sizes == 1).any() or "sample" in case.make or "cubic" in case.make:
            continue
        latents = latents_of(case._replace(shape=(8, 8) if name == "hierarchical" else (64,)), quantizer.dim, generator)
        quantizer(latents)
        codes = quantizer.eval().encode(latents)
        others = (codes + 1 + torch.randint(10**6, codes.shape) % (sizes - 1)) % sizes
        if name == "hierarchical":
            bad = wrong_maps(quantizer, latents, others)
        else:
            bad = wrong_codes(quantizer, of_latents(latents), others)
        changed, noticed = changed + len(bad), noticed + int(bad.sum())
    assert noticed > 0.8 * changed > 0  # some codes are equal


def attempt(case: Case) -> None:
    """Trains, quantizes and compares."""
    torch.manual_seed(case.seed)
    generator = torch.Generator().manual_seed(case.seed)
    quantizer = made(case)
    if case.cast:
        quantizer = quantizer.to(case.dtype)
    dim = quantizer.dim
    latents = of_layout(quantizer, latents_of(case, dim, generator))
    mask = mask_of(case, generator)
    learned = [parameter for parameter in quantizer.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(learned, 1e-3, foreach=False) if learned else None
    for _ in range(case.steps):
        other = case._replace(latents=case.latents if case.starts else "ordinary")
        step(quantizer, of_layout(quantizer, latents_of(other, dim, generator)), mask, optimizer)
    if case.far != 1.0:
        put_far(quantizer, case.far)
    step(quantizer, latents, mask, None)
    compare(quantizer.eval(), latents, mask)


def of_layout(quantizer: q.AbstractBottleneck, latents: Tensor) -> Tensor:
    """Latents in the layout that the quantizer takes."""
    return latents.movedim(-1, 1) if isinstance(quantizer, q.ChannelFirst) else latents


def put_far(quantizer: q.AbstractBottleneck, factor: float) -> None:
    """Puts the first code of each codebook far from all others."""
    with torch.no_grad():
        for module in quantizer.modules():
            tables = [module.codes] if isinstance(module, MovingAverageCodebook) else []
            tables += [getattr(module, name, None) for name in ("learned", "learned_codes", "frozen_codebook")]
            for table in tables:
                if isinstance(table, Tensor):
                    table[0] *= factor


def step(quantizer, latents, mask, optimizer) -> None:
    """A forward and a backward in training, and what holds for them."""
    latents = latents.clone().requires_grad_()
    out = quantizer.train()(latents, mask)
    check_forward(quantizer, latents, mask, out)
    weights = torch.randn(out.values.shape)
    quantizer.zero_grad()
    loss = (out.values.to(torch.promote_types(latents.dtype, torch.float32)) * weights).sum() + out.loss
    if loss.requires_grad:
        loss.backward()
    assert latents.grad is None or latents.grad.isfinite().all(), "gradient of latents"
    for name, parameter in quantizer.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), f"gradient of {name}"
    if optimizer is not None:
        optimizer.step()
    for name, tensor in quantizer.state_dict().items():
        assert tensor.isfinite().all(), f"state {name}"


def check_forward(quantizer, latents, mask, out) -> None:
    """What holds for every forward."""
    assert out.values.shape == latents.shape
    assert out.values.dtype == latents.dtype
    assert out.values.isfinite().all(), "values"
    assert out.loss.isfinite(), "loss"
    assert out.loss >= 0, f"loss of {out.loss.item()}"
    assert all(term.isfinite() for term in out.terms.values()), f"terms {out.terms}"
    if mask is not None:
        channels_last = out.values.movedim(1, -1) if isinstance(quantizer, q.ChannelFirst) else out.values
        assert (channels_last[~mask] == 0).all(), "values of masked places"
    if quantizer.codebook_size is None:
        return
    if quantizer.quantizes_rows:
        kept = torch.ones(out.codes.shape, dtype=torch.bool) if mask is None else mask
        kept = kept.reshape(kept.shape + (1,) * (out.codes.ndim - kept.ndim)).expand(out.codes.shape)
        assert (out.codes[~kept] == -1).all(), "codes of masked places"
    assert (out.codes >= -1).all()
    assert (out.codes < quantizer.codebook_size).all()
    if quantizer.training and any(shows_a_blend(module) for module in quantizer.modules()):
        return
    check_values(quantizer, latents, out)


def check_values(quantizer, latents, out) -> None:
    """Values are decoded codes: bit for bit where both are computed in one type."""
    size = [] if quantizer.quantizes_rows else [latents.shape[1:-1]]
    decoded = quantizer.decode(out.codes, *size)
    if latents.dtype == torch.float64 and quantizer.training_progress.dtype != torch.float64:
        # no copy in float64 says it better: its codes differ where they are scaled or mapped in float32
        # relative to the rows, not to the feature: a projection adds up all of them
        scale = max(float(part.detach().double().norm()) for part in parts_of(quantizer, out.codes, decoded))
        assert ((out.values - decoded).abs() <= 1e-5 * max(scale, 1e-30)).all(), "values near decoded codes"
        return
    largest = torch.finfo(latents.dtype).max
    assert torch.equal(out.values, decoded.clamp(-largest, largest).to(latents.dtype)), "values == decode(codes)"


def parts_of(quantizer, codes, decoded) -> list[Tensor]:
    """What decoding adds up: values of levels may cancel each other, and their rounding errors do not."""
    if isinstance(quantizer, q.Joined):
        return parts_of(quantizer.quantizer, quantizer.split(codes), decoded)
    if not isinstance(quantizer, q.Residual | q.Product):
        return [decoded]
    parts = codes.unbind(codes.ndim - len(quantizer.code_shape))
    members = list(zip(quantizer.places, parts, strict=True))
    return [part for member, own in members for part in parts_of(member, own, member.decode(own))]


def shows_a_blend(module) -> bool:
    """True for a quantizer whose decoder sees in training what is no code."""
    estimator = getattr(module, "estimator", None)
    draws = estimator is not None and estimator.temperature_at(0.0) is not None and not estimator.hard
    noisy = isinstance(module, q.GaussianMixtureQuantizer) and not module.noise.is_none
    drawn = isinstance(module, q.GaussianQuantizer) and not module.hard
    return draws or noisy or drawn or getattr(module, "noise_dropout", 0) > 0


@torch.no_grad()
def compare(quantizer, latents, mask) -> None:
    """Codes, posterior and values in evaluation against the definitions."""
    out = quantizer(latents, mask)
    check_forward(quantizer, latents, mask, out)
    codes = quantizer.encode(latents, mask)
    assert torch.equal(codes, out.codes), "encode == codes of the forward"
    if isinstance(quantizer, q.Hierarchical):
        if mask is None and quantizer.interpolation == "linear":
            assert not wrong_maps(quantizer, latents, codes).any(), "codes of maps"
        return
    if isinstance(quantizer, q.ChannelFirst):
        latents, quantizer = latents.movedim(1, -1), quantizer.quantizer
    kept = (torch.ones(latents.shape[:-1], dtype=torch.bool) if mask is None else mask).reshape(-1)
    problem = of_latents(latents)
    shown = codes.reshape(len(kept), *codes.shape[latents.ndim - 1 :])[kept]
    problem = problem._replace(rows=problem.rows[kept], error=problem.error[kept])
    if isinstance(quantizer, q.StochasticQuantizer) and quantizer.variance == "sample":
        return  # a code depends on the other latents of its sample
    bad = wrong_codes(quantizer, problem, shown)
    assert not bad.any(), f"codes of {int(bad.sum())} of {len(bad)} rows"
    expected = commitment_of(quantizer, problem, shown)
    if expected is not None:
        difference = abs(float(out.terms["commitment"]) - expected[0])
        assert difference <= expected[1], f"commitment off by {difference} beyond {expected[1]}"
    if quantizer.has_posterior and len(kept):
        check_posterior(quantizer, latents, problem, kept)
    divergence = quantizer.divergence(latents)
    assert divergence.isfinite().all()
    assert (divergence >= 0).all(), "divergence"
    assert quantizer.posterior_mean(latents).isfinite().all(), "posterior mean"
    assert all(part.isfinite().all() for part in quantizer.sample_posterior(latents)), "draw"


def check_posterior(quantizer, latents, problem, kept) -> None:
    """Responsibilities against a softmax in float64."""
    posterior = quantizer.posterior(latents)
    assert posterior.responsibilities.isfinite().all()
    assert posterior.entropy.isfinite().all()
    total = posterior.responsibilities.sum(-1)
    assert torch.allclose(total, torch.ones_like(total), atol=1e-4), "responsibilities add up to 1"
    expected = posterior_of(quantizer, problem)
    if expected is not None:
        found = posterior.responsibilities.reshape(len(kept), quantizer.codebook_size)[kept].double()
        difference = (found - expected[0]).abs().amax(-1) - expected[1]
        assert (difference <= 0).all(), (
            f"responsibilities off by {float(difference.max())} beyond {float(expected[1].max())}"
        )
