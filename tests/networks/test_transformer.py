import pytest
import torch

from gmvq.networks.transformer import Transformer, rotation


def made(causal=True, **changes):
    torch.manual_seed(0)
    transformer = Transformer(**{"width": 16, "depth": 3, "heads": 2, "places": 12, "causal": causal, **changes})
    with torch.no_grad():  # attention that is far from even
        for parameter in transformer.parameters():
            if parameter.ndim == 2:
                parameter.mul_(15)
    return transformer.eval()


@pytest.mark.parametrize("parts", [[1] * 12, [12], [5, 1, 6], [1, 4, 7]])
def test_with_a_cache_it_says_the_same(parts):
    transformer, features = made(), torch.randn(3, 12, 16)
    whole = transformer(features)
    cache = transformer.cache(3, features)
    pieces = torch.cat([transformer(part, cache) for part in features.split(parts, dim=1)], dim=1)
    torch.testing.assert_close(pieces, whole, atol=1e-5, rtol=1e-5)
    assert cache.length == cache.room == 12


def test_no_place_looks_at_a_later_one():
    transformer, features = made(), torch.randn(1, 12, 16)
    before = transformer(features)
    features[:, 7:] = torch.randn(1, 5, 16)
    after = transformer(features)
    torch.testing.assert_close(after[:, :7], before[:, :7])
    assert not torch.allclose(after[:, 7:], before[:, 7:])


def test_looking_both_ways_every_place_sees_every_other():
    transformer, features = made(causal=False), torch.randn(1, 12, 16)
    before = transformer(features)
    features[:, 11] = torch.randn(16)
    assert (transformer(features) - before).abs().amax(-1).min() > 1e-4
    with pytest.raises(ValueError, match="'cache' must be None"):
        transformer(features, transformer.cache(1, features))


def test_products_of_turned_vectors_depend_on_their_distance():
    queries, keys = torch.randn(2, 8), torch.randn(2, 8)
    turned = rotation(10, 8)
    at = [(turned.at(place, place + 1).turn(queries), turned.at(place + 3, place + 4).turn(keys)) for place in (0, 5)]
    first, second = ((query * key).sum(-1) for query, key in at)
    torch.testing.assert_close(first, second)
    torch.testing.assert_close(turned.at(0, 1).turn(queries), queries)


def test_it_can_learn_after_it_was_only_looked_at():
    transformer, features = made(), torch.randn(1, 12, 16)
    with torch.inference_mode():
        transformer(features)
    transformer(features.requires_grad_()).sum().backward()
    assert features.grad is not None


def test_bfloat16_is_near_float32():
    transformer, features = made(depth=1), torch.randn(2, 12, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        halved = transformer(features)
    torch.testing.assert_close(halved.float(), transformer(features), atol=0.2, rtol=0.2)


def test_a_sequence_that_is_too_long_is_refused():
    transformer = made()
    with pytest.raises(ValueError, match="at most 12 places, got 13"):
        transformer(torch.randn(1, 13, 16))
    cache = transformer.cache(1, torch.zeros(1), places=4)
    transformer(torch.randn(1, 4, 16), cache)
    with pytest.raises(ValueError, match="at most 4 places, got 5"):
        transformer(torch.randn(1, 1, 16), cache)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"width": 18}, "'width' must be a multiple of twice 'heads' = 2"),
        ({"depth": 0}, "'depth' must be an integer of at least 1"),
        ({"heads": True}, "'heads' must be an integer"),
        ({"dropout": 1.0}, r"'dropout' must lie in \[0, 1\)"),
    ],
)
def test_wrong_sizes_are_refused(changes, reason):
    with pytest.raises(ValueError, match=reason):
        made(**changes)
