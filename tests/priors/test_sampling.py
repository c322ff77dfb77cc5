import math

import pytest
import torch

from gmvq.priors import CodeShape, Sampling, places_in_order
from gmvq.priors.sampling import inverted

LOGITS = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.1, 0.2, 0.3, 0.4]]).log()


def test_the_models_own_probabilities_by_default():
    torch.testing.assert_close(Sampling().probabilities(LOGITS), LOGITS.exp())
    torch.testing.assert_close(Sampling().probabilities(LOGITS + 7), LOGITS.exp())


def test_temperature_top_k_and_top_p_by_hand():
    cold = LOGITS.exp().square()
    torch.testing.assert_close(Sampling(temperature=0.5).probabilities(LOGITS), cold / cold.sum(-1, keepdim=True))
    assert torch.equal(Sampling(temperature=0.0).probabilities(LOGITS), torch.eye(4)[[0, 3]])
    kept = torch.tensor([[0.5, 0.3, 0, 0], [0, 0, 0.3, 0.4]])
    torch.testing.assert_close(Sampling(top_k=2).probabilities(LOGITS), kept / kept.sum(-1, keepdim=True))
    kept = torch.tensor([[0.5, 0.3, 0, 0], [0, 0.2, 0.3, 0.4]])
    torch.testing.assert_close(Sampling(top_p=0.75).probabilities(LOGITS), kept / kept.sum(-1, keepdim=True))
    assert torch.equal(Sampling(top_p=1e-9).probabilities(LOGITS), torch.eye(4)[[0, 3]])
    torch.testing.assert_close(Sampling(top_k=9).probabilities(LOGITS), LOGITS.exp())


def test_guidance_of_0_and_1_and_between():
    conditional, unconditional = LOGITS[:1], LOGITS[1:]
    torch.testing.assert_close(Sampling(guidance=0.0).guided(conditional, unconditional), unconditional)
    torch.testing.assert_close(Sampling(guidance=1.0).guided(conditional, unconditional), conditional)
    assert not Sampling(guidance=0.0).needs_both
    assert not Sampling(guidance=1.0).needs_both
    assert Sampling(guidance=2.0).needs_both
    doubled = Sampling(guidance=2.0).guided(conditional, unconditional).softmax(-1)
    by_hand = conditional.exp().square() / unconditional.exp()
    torch.testing.assert_close(doubled, by_hand / by_hand.sum(-1, keepdim=True))


def test_inversion_gives_each_code_its_share_and_none_of_probability_0():
    probabilities = torch.tensor([[0.25, 0.0, 0.5, 0.25, 0.0]])
    uniforms = torch.linspace(0, 1 - 2**-53, 4001, dtype=torch.float64)
    codes = inverted(probabilities.expand(4001, -1), uniforms)
    shares = torch.bincount(codes, minlength=5) / 4001
    torch.testing.assert_close(shares, probabilities[0], atol=1e-3, rtol=0.0)
    assert shares[1] == shares[4] == 0


def test_the_numbers_of_a_sample_are_its_own():
    sampling, device = Sampling(seed=5), torch.device("cpu")
    batch = sampling.uniforms(0, 4, 3, device)
    assert torch.equal(batch[2:], sampling.uniforms(2, 2, 3, device))
    assert torch.equal(batch[:, :2], sampling.uniforms(0, 4, 2, device))
    assert len(torch.cat([batch, Sampling(seed=6).uniforms(0, 4, 3, device)]).unique()) == 24
    assert sampling.uniforms(0, 0, 3, device).shape == (0, 3)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"temperature": -1.0}, "'temperature' must be a finite number of at least 0"),
        ({"temperature": math.nan}, "'temperature'"),
        ({"top_k": 0}, "'top_k' must be an integer of at least 1"),
        ({"top_p": 0.0}, "'top_p' must be above 0"),
        ({"top_p": 1.5}, r"'top_p' must lie in \[0, 1\]"),
        ({"guidance": -0.5}, "'guidance' must be a finite number of at least 0"),
        ({"seed": -1}, "'seed' must be an integer of at least 0"),
        ({"top_k": 2.5}, "'top_k' must be an integer of at least 1, got 2.5"),
        ({"top_k": "all"}, "'top_k' must be an integer of at least 1, got 'all'"),
        ({"top_p": "most"}, "'top_p' must lie in"),
        ({"top_p": True}, "'top_p' must lie in"),
        ({"temperature": "hot"}, "'temperature' must be a finite number"),
        ({"temperature": None}, "'temperature' must be a finite number"),
        ({"guidance": "strong"}, "'guidance' must be a finite number"),
        ({"seed": 1.5}, "'seed' must be an integer"),
        ({"steps": 0}, "'steps' must be an integer of at least 1"),
        ({"steps": 2.5}, "'steps' must be an integer of at least 1"),
    ],
)
def test_wrong_options_get_a_reason(options, reason):
    with pytest.raises(ValueError, match=reason):
        Sampling(**options)


@pytest.mark.parametrize("name", ["raster", "columns", "snake", "spiral", "coarse"])
@pytest.mark.parametrize("grid", [(), (1,), (5,), (1, 1), (4, 4), (3, 5), (1, 6), (6, 1), (7, 7)])
def test_an_order_has_each_place_once(name, grid):
    assert torch.equal(places_in_order(name, grid).sort().values, torch.arange(math.prod(grid)))


def test_orders_are_what_they_are_called():
    assert places_in_order("raster", (2, 2)).tolist() == [0, 1, 2, 3]
    assert places_in_order("snake", (2, 3)).tolist() == [0, 1, 2, 5, 4, 3]
    assert places_in_order("spiral", (3, 3)).tolist()[0] == 4
    assert places_in_order("spiral", (3, 3)).tolist()[-1] == 0
    steps = torch.stack([torch.stack([p // 5, p % 5]) for p in places_in_order("spiral", (5, 5))]).diff(dim=0)
    assert (steps.abs().sum(1) == 1).all()  # each place is next to the one before
    assert places_in_order("coarse", (4, 4)).tolist()[:4] == [0, 2, 8, 10]
    with pytest.raises(ValueError, match="'order' must be one of raster"):
        places_in_order("random", (2, 2))
    with pytest.raises(ValueError, match="'grid' must have at most 2 axes"):
        places_in_order("raster", (2, 2, 2))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (((2, 0), (4,)), "'grid' must be an integer of at least 1"),
        (((2, 2), (0,)), "'codebook_sizes' must be an integer of at least 1"),
        (((2, 2), (4.5,)), "'codebook_sizes' must be an integer of at least 1"),
        (((2, 2), ()), "'codebook_sizes' must have a number for each level"),
        (((2, 2, 2), (4,)), "'grid' must have at most 2 axes"),
        (((2, 2), (4,), -1), "'classes' must be an integer of at least 0"),
    ],
)
def test_wrong_shapes_get_a_reason(arguments, reason):
    with pytest.raises(ValueError, match=reason):
        CodeShape(*arguments)


def test_a_shape_from_json_is_the_same():
    assert CodeShape([2, 3], [4]) == CodeShape((2, 3), (4,))
    assert CodeShape((2, 3), (4, 5)).axes == (2, 3, 2)
    assert CodeShape((2, 3), (4, 5)).length == 12
    assert CodeShape([], [4, 5]).axes == (2,)
    assert CodeShape([], [4]).axes == ()
    assert CodeShape([], [4, 5]).length == 2
