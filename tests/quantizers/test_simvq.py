import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gmvq.quantizers import Rotation
from gmvq.quantizers.simvq import SimVQ


def test_loss_and_gradients_are_those_of_the_paper():
    torch.manual_seed(0)
    quantizer = SimVQ(3, 5, frozen_codebook_dim=4, commitment_weight=0.5, quantization_weight=0.8).double()
    rows = torch.randn(20, 3, dtype=torch.float64, requires_grad=True)
    codebook = quantizer.frozen_codebook @ quantizer.transform.weight.T
    nearest = codebook[torch.cdist(rows, codebook).argmin(-1)]
    out = quantizer(rows)
    torch.testing.assert_close(out.values, nearest, rtol=0, atol=0)
    expected = 0.8 * F.mse_loss(nearest, rows.detach()) + 0.5 * F.mse_loss(rows, nearest.detach())
    torch.testing.assert_close(out.loss, expected)
    inputs = (rows, quantizer.transform.weight)
    for ours, theirs in zip(torch.autograd.grad(out.loss, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_closed_case():
    quantizer = SimVQ(2, 2).double()
    quantizer.frozen_codebook.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    with torch.no_grad():
        quantizer.transform.weight.copy_(torch.tensor([[2.0, 0.0], [1.0, -1.0]]))  # codes (2, 1) and (0, -1)
    out = quantizer(torch.tensor([[1.0, 1.0], [0.0, -2.0]], dtype=torch.float64))
    assert out.codes.tolist() == [0, 1]
    assert out.values.tolist() == [[2.0, 1.0], [0.0, -1.0]]
    # squares (1, 0) and (0, 1) have the mean 1/2
    assert out.loss.item() == pytest.approx((1 + 0.25) / 2)


def test_one_step_moves_all_codes():
    torch.manual_seed(0)
    quantizer = SimVQ(4, 32)
    before = quantizer.codebook.detach().clone()
    out = quantizer(torch.randn(1, 4))
    out.loss.backward()
    torch.optim.SGD(quantizer.parameters(), 0.1).step()
    assert ((quantizer.codebook - before).abs().sum(-1) > 0).all()
    assert quantizer.frozen_codebook.grad is None
    assert [name for name, _ in quantizer.named_parameters()] == ["transform.weight"]


def test_codes_begin_as_the_paper_draws_them():
    torch.manual_seed(0)
    assert SimVQ(64, 1000).frozen_codebook.std().item() == pytest.approx(64**-0.5, rel=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_network_may_stand_for_the_linear_map(dtype):
    network = nn.Sequential(nn.Linear(7, 9), nn.ReLU(), nn.Linear(9, 4)).to(dtype)
    quantizer = SimVQ(6, 16, codebook_dim=4, frozen_codebook_dim=7, transform=network, estimator=Rotation())
    out = quantizer(torch.randn(30, 6, dtype=dtype))
    out.loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in network.parameters() if parameter.ndim > 1)
    torch.testing.assert_close(quantizer.code_vectors, network(quantizer.frozen_codebook))


def test_values_are_decoded_codes_under_autocast():
    quantizer = SimVQ(8, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = quantizer(torch.randn(50, 8))
        assert torch.equal(out.values, quantizer.decode(out.codes))
        assert quantizer.code_vectors.dtype == torch.float32


def test_bad_arguments_get_a_reason():
    with pytest.raises(ValueError, match="'commitment_weight' must be"):
        SimVQ(4, 8, commitment_weight=-1.0)
    with pytest.raises(ValueError, match="'quantization_weight' must be"):
        SimVQ(4, 8, quantization_weight=float("nan"))
    with pytest.raises(ValueError, match="'frozen_codebook_dim' must be"):
        SimVQ(4, 8, frozen_codebook_dim=0)
    with pytest.raises(
        ValueError, match=r"'transform' must take frozen codes \(8, 4\) to codes \(8, 4\), got \(8, 5\)"
    ):
        SimVQ(4, 8, transform=nn.Linear(4, 5))
