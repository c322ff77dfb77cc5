"""The classes that handle their own maps work in half precision and under autocast, and look up what they gave."""

import pytest
import torch

from gmvq.compat import vector_quantize_pytorch as ours

RESIDUAL = {"dim": 8, "codebook_size": 16, "num_quantizers": 3}

KINDS = {
    "ResidualLFQ": RESIDUAL,
    "ResidualSimVQ": RESIDUAL,
    "GroupedResidualLFQ": {**RESIDUAL, "codebook_size": 4, "groups": 2},
    "GroupedResidualFSQ": {"dim": 8, "groups": 2, "levels": [5, 4], "num_quantizers": 3},
    "LatentQuantize": {"levels": [5, 4, 3], "dim": 8},
    "FSP": {"levels": [5, 4, 3], "dim": 8},
    "HierarchicalVQ": {"dim": 8, "codebook_size": 16, "scales": (1, 3, 8), "kmeans_init": False},
}


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_values_are_those_of_their_codes(kind, dtype, autocast):
    torch.manual_seed(0)
    dropin, x = getattr(ours, kind)(**KINDS[kind]), torch.randn(2, 8, 8)
    if not autocast:
        dropin, x = dropin.to(dtype), x.to(dtype)
    for training in (True, False):
        with torch.autocast("cpu", dtype=torch.bfloat16 if dtype == torch.float64 else dtype, enabled=autocast):
            values, codes, *losses = dropin.train(training)(x)
        assert values.dtype == x.dtype
        assert all(bool(loss.isfinite().all()) for loss in losses if isinstance(loss, torch.Tensor))
    look_up = getattr(dropin, "get_output_from_indices", None) or dropin.indices_to_codes
    found = look_up(codes)
    assert found.dtype == values.dtype
    # FSP looks values up from the middles of intervals, and forward moves latents there: a rounding of size 1
    rounding = torch.finfo(values.dtype).eps if kind == "FSP" else 0
    torch.testing.assert_close(found, values, atol=2 * rounding, rtol=0)
