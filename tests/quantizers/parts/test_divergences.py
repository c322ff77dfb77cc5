import math

import torch

from gmvq.quantizers.parts.divergences import divergence_from, divergence_from_uniform


def test_a_divergence_is_at_least_0_with_finite_gradients():
    probabilities = torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.25, 0.75], [0.0, 0.0]], requires_grad=True)
    divergences = divergence_from_uniform(probabilities)
    expected = math.log(2) + 0.25 * math.log(0.25) + 0.75 * math.log(0.75)
    torch.testing.assert_close(divergences.detach(), torch.tensor([0.0, math.log(2), expected, 0.0]))
    divergences.sum().backward()
    assert probabilities.grad.isfinite().all()
    torch.testing.assert_close(divergence_from(probabilities[2].log(), probabilities[2]).detach(), torch.tensor(0.0))
