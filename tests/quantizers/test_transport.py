import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gmvq.quantizers import Linear, transport
from gmvq.quantizers.transport import OptimalTransportQuantizer, code_potentials, normalize_over_ranks


def sinkhorn(rows: Tensor, codebook: Tensor, temperature: float, iterations: int) -> Tensor:
    """The plan on plain exponentials, rows last: the slow twin."""
    distances = torch.cdist(rows, codebook)
    plan = (-(distances - distances.mean()) / distances.std(correction=0) / temperature).exp()
    for _ in range(iterations):
        plan = plan / plan.sum(0) / plan.shape[1]
        plan = plan / plan.sum(1, keepdim=True) / plan.shape[0]
    return plan


@pytest.mark.parametrize(("temperature", "iterations"), [(0.1, 5), (0.3, 1), (1.0, 50)])
def test_codes_are_those_of_sinkhorn_on_exponentials(temperature, iterations):
    torch.manual_seed(0)
    quantizer = OptimalTransportQuantizer(3, 7, temperature=temperature, iterations=iterations).double()
    rows = torch.randn(60, 3, dtype=torch.float64) + 1
    plan = sinkhorn(rows, quantizer.codebook.detach(), temperature, iterations)
    assert torch.equal(quantizer(rows).codes, plan.argmax(-1))
    assert torch.equal(quantizer.eval()(rows).codes, torch.cdist(rows, quantizer.codebook).argmin(-1))


def test_the_plan_gives_all_codes_the_same_mass():
    torch.manual_seed(0)
    log_kernel, kept = 5 * torch.randn(40, 6, dtype=torch.float64), torch.arange(40) < 30
    g = code_potentials([log_kernel], [kept], iterations=200)
    plan = (log_kernel + g).softmax(-1)[kept]
    torch.testing.assert_close(plan.sum(0), torch.full((6,), 5.0, dtype=torch.float64))


def test_rows_without_mass_change_nothing():
    torch.manual_seed(0)
    log_kernel, kept = torch.randn(40, 6), torch.arange(40) < 30
    torch.testing.assert_close(
        code_potentials([log_kernel], [kept], 5), code_potentials([log_kernel[:30]], [kept[:30]], 5)
    )
    nothing = torch.zeros(40, dtype=torch.bool)
    assert (code_potentials([log_kernel], [nothing], 5) == 0).all()
    expected = log_kernel[:30] - log_kernel[:30].mean()
    normalize_over_ranks([log_kernel], [kept])
    torch.testing.assert_close(log_kernel[:30], expected / expected.square().mean().sqrt())


def test_blocks_change_nothing(monkeypatch):
    torch.manual_seed(0)
    quantizer = OptimalTransportQuantizer(4, 8).double()
    rows, mask = torch.randn(100, 4, dtype=torch.float64), torch.arange(100) % 5 > 0
    whole = quantizer(rows, mask).codes
    monkeypatch.setattr(transport, "BLOCK_ELEMENTS", 7 * 8)
    assert torch.equal(quantizer(rows, mask).codes, whole)


def test_a_closed_case():
    quantizer = OptimalTransportQuantizer(1, 2, temperature=0.01, iterations=200).double()
    with torch.no_grad():
        quantizer.learned.copy_(torch.tensor([[0.0], [100.0]]))
    rows = torch.tensor([[3.0], [0.0], [1.0], [2.0]], dtype=torch.float64)
    # all are nearest to 0; those that lose least go to 100
    assert quantizer(rows).codes.tolist() == [1, 0, 0, 1]
    assert quantizer.encode(rows).tolist() == [0, 0, 0, 0]
    assert quantizer.eval()(rows).codes.tolist() == [0, 0, 0, 0]


def test_codes_are_used_where_all_latents_have_the_same_nearest_one():
    torch.manual_seed(0)
    quantizer = OptimalTransportQuantizer(8, 64)
    rows = 5 + 0.1 * torch.randn(2000, 8)
    assert len(quantizer.encode(rows).unique()) == 1
    assert len(quantizer(rows).codes.unique()) > 40
    cold = OptimalTransportQuantizer(8, 64, temperature=0.003, iterations=100)
    cold.load_state_dict(quantizer.state_dict())
    counts = cold(rows).codes.bincount(minlength=64)
    assert counts.min() > 0.5 * 2000 / 64
    assert counts.max() < 1.5 * 2000 / 64


@pytest.mark.parametrize("scale", [1e-6, 1e3, 1e6])
def test_the_scale_does_not_matter(scale):
    torch.manual_seed(0)
    quantizer = OptimalTransportQuantizer(4, 8)
    rows = torch.randn(100, 4)
    codes = quantizer(rows).codes
    with torch.no_grad():
        quantizer.learned.mul_(scale)
    assert (quantizer(rows * scale).codes == codes).float().mean() > 0.98  # but for ties that rounding may turn


def test_a_cold_plan_stays_finite_in_float32():
    torch.manual_seed(0)
    quantizer = OptimalTransportQuantizer(4, 8, temperature=1e-4)
    rows = torch.randn(200, 4)
    # on exponentials rows vanish altogether
    assert sinkhorn(rows, quantizer.codebook.detach(), 1e-4, 5).isnan().any()
    assert len(quantizer(rows).codes.unique()) == 8


def test_a_batch_may_be_smaller_than_the_codebook():
    torch.manual_seed(0)
    quantizer = OptimalTransportQuantizer(4, 100)
    rows = torch.randn(10, 4)
    codes = quantizer(rows).codes
    assert len(codes.unique()) >= 9
    # many codes hold the same mass of a row; of those it takes the nearest, whatever rounding makes of them
    for seed in range(20):
        order = torch.randperm(10, generator=torch.Generator().manual_seed(seed))
        padded, kept = torch.cat([rows[order], torch.ones(7, 4)]), torch.arange(17) < 10
        assert torch.equal(quantizer(padded, kept).codes[:10], codes[order])


def test_a_frozen_quantizer_takes_the_nearest_code_in_training():
    quantizer = OptimalTransportQuantizer(4, 16).freeze()
    rows = torch.randn(50, 4)
    assert torch.equal(quantizer(rows).codes, quantizer.encode(rows))


def test_loss_pulls_both_sides():
    torch.manual_seed(0)
    quantizer = OptimalTransportQuantizer(3, 4, commitment_weight=0.5, quantization_weight=0.75).double()
    rows = torch.randn(20, 3, dtype=torch.float64, requires_grad=True)
    out = quantizer(rows)
    chosen = quantizer.learned[out.codes]
    torch.testing.assert_close(out.loss, 1.25 * F.mse_loss(rows, chosen))
    rows_gradient, codes_gradient = torch.autograd.grad(out.loss, (rows, quantizer.learned))
    torch.testing.assert_close(rows_gradient, 0.5 * 2 * (rows - chosen) / rows.numel())
    expected = torch.zeros_like(codes_gradient).index_add_(0, out.codes, 0.75 * 2 * (chosen - rows) / rows.numel())
    torch.testing.assert_close(codes_gradient, expected.detach())


def test_temperature_may_follow_a_schedule():
    torch.manual_seed(0)
    scheduled = OptimalTransportQuantizer(3, 8, temperature=Linear(1.0, 0.01))
    constant = OptimalTransportQuantizer(3, 8, temperature=0.01)
    constant.load_state_dict(scheduled.state_dict())
    rows = torch.randn(100, 3)
    assert not torch.equal(scheduled(rows).codes, constant(rows).codes)
    scheduled.set_progress(1.0)
    assert torch.equal(scheduled(rows).codes, constant(rows).codes)


def test_bad_arguments_get_a_reason():
    with pytest.raises(ValueError, match="'temperature' must be"):
        OptimalTransportQuantizer(4, 8, temperature=0.0)
    with pytest.raises(ValueError, match="'iterations' must be"):
        OptimalTransportQuantizer(4, 8, iterations=0)
    with pytest.raises(ValueError, match="'commitment_weight' must be"):
        OptimalTransportQuantizer(4, 8, commitment_weight=-1.0)
