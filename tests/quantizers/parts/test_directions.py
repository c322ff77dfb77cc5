import pytest
import torch
from members import DIM, SIZE

from gmvq.quantizers import (
    BinarySphericalQuantizer,
    IndexBackpropagationQuantizer,
    RandomProjectionQuantizer,
    StochasticQuantizer,
)
from gmvq.quantizers.parts.directions import SHORTEST, direction


def test_a_direction_has_length_1_and_a_bounded_gradient():
    rows = torch.tensor([[3.0, 4.0], [0.3 * SHORTEST, 0.4 * SHORTEST], [0.0, 0.0]], requires_grad=True)
    out = direction(rows)
    torch.testing.assert_close(out.detach(), torch.tensor([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]]))
    out[:, 0].sum().backward()
    assert rows.grad.norm(dim=-1).max() <= 1.01 / SHORTEST


@pytest.mark.parametrize(
    "make",
    [
        lambda: BinarySphericalQuantizer(DIM, SIZE),
        lambda: StochasticQuantizer(DIM, SIZE, distribution="von-mises-fisher"),
        lambda: IndexBackpropagationQuantizer(DIM, SIZE, cosine=True),
        lambda: RandomProjectionQuantizer(DIM, SIZE, codebook_dim=DIM, normalize=False),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_padding_of_zeros_does_not_throw_the_encoder_away(make, training):
    torch.manual_seed(0)
    quantizer = make().train(training)
    rows = torch.cat([torch.randn(63, DIM), torch.zeros(1, DIM)]).requires_grad_()
    out = quantizer(rows)
    (out.values.square().sum() + out.values.sum() + out.loss).backward()
    assert rows.grad.abs().max() < 1e7  # was 1e12
