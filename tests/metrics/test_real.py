import numpy as np
import pytest
import torch
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score
from torch.nn.functional import cosine_similarity

from gmvq.metrics.real import RealDistortion


def pair(*shape, seed=0, offset=0.0):
    generator = torch.Generator().manual_seed(seed)
    real = torch.randn(shape, generator=generator) + offset
    return real + 0.3 * torch.randn(shape, generator=generator), real


def measured(*pairs, cosine=False):
    distortion = RealDistortion(cosine=cosine)
    for made, real in pairs:
        distortion.update(made, real)
    return distortion.metrics()


def rows(values):
    return values.movedim(1, -1).reshape(-1, values.shape[1]).double().numpy()


def test_series_equal_scikit_learn():
    made, real = pair(5, 3, 40, offset=1e4)
    metrics = measured((made[:2], real[:2]), (made[2:], real[2:]))
    assert metrics["mse"] == pytest.approx(mean_squared_error(rows(real), rows(made)), rel=1e-12)
    assert metrics["mae"] == pytest.approx(mean_absolute_error(rows(real), rows(made)), rel=1e-12)
    # the mean of 1e4 costs 8 of the 16 digits of a squared deviation
    assert metrics["r2"] == pytest.approx(r2_score(rows(real), rows(made)), rel=1e-7)


def test_vectors_have_a_cosine():
    made, real = pair(50, 6)
    metrics = measured((made, real), cosine=True)
    assert metrics["cosine"] == pytest.approx(float(cosine_similarity(made.double(), real.double()).mean()), rel=1e-12)
    assert metrics["r2"] == pytest.approx(r2_score(rows(real), rows(made)), rel=1e-12)


def test_a_zero_vector_is_like_zero_alone():
    zero, other = torch.zeros(1, 3), torch.ones(1, 3)
    assert [measured(each, cosine=True)["cosine"] for each in ((zero, zero), (zero, other), (other, other))] == [
        1,
        0,
        1,
    ]


def test_items_of_any_length_count_the_same():
    short, long = (torch.ones(1, 1, 1), torch.zeros(1, 1, 1)), (torch.zeros(1, 1, 9), torch.zeros(1, 1, 9))
    assert measured(short, long)["mse"] == 0.5


def test_padding_does_not_count():
    made, real = pair(3, 2, 10)
    lengths = torch.tensor([10, 4, 1])
    padded, alone = RealDistortion(), RealDistortion()
    spoiled = made.clone()
    for index, length in enumerate(lengths.tolist()):
        alone.update(made[index : index + 1, :, :length], real[index : index + 1, :, :length])
        spoiled[index, :, length:] = float("nan")
    padded.update(spoiled, real, lengths)
    assert padded.metrics() == pytest.approx(alone.metrics(), rel=1e-12)
    assert padded.items == alone.items == 3


def test_identity_is_perfect():
    _, real = pair(4, 3, 20)
    assert measured((real, real), cosine=True) == {"mse": 0, "mae": 0, "cosine": 1, "r2": 1}


def test_channels_that_never_change_explain_nothing():
    made, real = pair(4, 2, 20)
    real[:, 0] = 0.1
    expected = r2_score(rows(real)[:, 1], rows(made)[:, 1])
    halves = (made[:1], real[:1]), (made[1:], real[1:])  # the mean of 0.1 is rounded differently in each
    assert measured(*halves)["r2"] == pytest.approx(expected, rel=1e-12)
    assert measured((made[:, :1], real[:, :1]))["r2"] is None
    assert RealDistortion().metrics() == {}


def test_merged_is_a_copy_without_a_process_group():
    distortion = RealDistortion(cosine=True)
    distortion.update(*pair(4, 3, 20))
    merged = distortion.merged()
    assert merged.metrics() == distortion.metrics()
    merged.update(*pair(4, 3, 20))
    assert (merged.items, distortion.items) == (8, 4)


def test_half_precision_is_summed_in_float64():
    made, real = pair(2, 1, 1000)
    made, real = made.bfloat16(), real.bfloat16()
    expected = np.square(rows(made.float()) - rows(real.float())).mean()
    assert measured((made, real))["mse"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("made", "real", "lengths", "message"),
    [
        (torch.zeros(2, 1, 4), torch.zeros(2, 1, 5), None, "one shape"),
        (torch.zeros(4), torch.zeros(4), None, "one shape"),
        (torch.full((1, 1, 4), torch.nan), torch.zeros(1, 1, 4), None, "'made' must be finite"),
        (torch.zeros(1, 1, 4), torch.full((1, 1, 4), torch.inf), None, "'real' must be finite"),
        (torch.zeros(2, 1, 4), torch.zeros(2, 1, 4), torch.tensor([4, 5]), "from 1 to 4"),
        (torch.zeros(2, 1, 4), torch.zeros(2, 1, 4), torch.tensor([4]), "one for each of 2"),
    ],
)
def test_bad_items_are_refused(made, real, lengths, message):
    with pytest.raises(ValueError, match=message):
        RealDistortion().update(made, real, lengths)


def test_other_channels_are_refused():
    distortion = RealDistortion()
    distortion.update(*pair(1, 2, 4))
    with pytest.raises(ValueError, match="2 channels"):
        distortion.update(*pair(1, 3, 4))
