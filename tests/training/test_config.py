import dataclasses
import itertools
import json

import pytest
import torch

from gmvq.training import Training


def test_survives_json():
    training = Training(betas=(0.8, 0.9), gradient_clip=None, threads=2)
    assert Training(**json.loads(json.dumps(dataclasses.asdict(training)))) == training


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("steps", 2.5),
        ("steps", True),
        ("batch_size", 0),
        ("warmup_steps", -1),
        ("gradient_accumulation", 0),
        ("seed", -1),
        ("evaluate_every", -1),
        ("checkpoint_every", -1),
        ("log_every", 0),
        ("threads", 0),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("gradient_clip", 0.0),
        ("gradient_clip", float("inf")),
        ("weight_decay", -0.1),
        ("final_learning_rate_fraction", 1.5),
        ("betas", (0.9, 1.0)),
        ("betas", (0.9,)),
        ("averaging_decay", 1.0),
        ("precision", "half"),
        ("device", "gpu"),
        ("device", "meta"),
        ("device", "cuda:99"),
    ],
)
def test_names_the_field_that_is_out_of_range(field, value):
    with pytest.raises(ValueError, match=f"'{field}'.*{value if value is True else ''}"):
        Training(**{field: value})


def test_learning_rate_rises_then_falls_to_its_fraction():
    training = Training(steps=100, warmup_steps=10, learning_rate=0.5, final_learning_rate_fraction=0.1)
    rates = [training.learning_rate_at(step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.05 * (step + 1) for step in range(10)])
    assert rates[10] == pytest.approx(0.5)
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[10:]))
    assert training.learning_rate_at(100) == pytest.approx(0.05)


@pytest.mark.parametrize("warmup_steps", [0, 5, 8])
def test_learning_rate_of_runs_as_short_as_their_warm_up(warmup_steps):
    training = Training(steps=5, warmup_steps=warmup_steps, learning_rate=1.0)
    rates = [training.learning_rate_at(step) for step in range(5)]
    assert all(0 < rate <= 1 for rate in rates)


def test_a_device_that_is_not_here_is_refused_with_a_remedy():
    missing = "cuda" if not torch.cuda.is_available() else "mps"
    with pytest.raises(
        ValueError, match=rf"'device' must be a device of this machine, got '{missing}' \(.*Leave it out"
    ):
        Training(device=missing)
    assert Training(device="cpu").device == "cpu"


def test_a_record_can_be_read_where_the_device_is_not():
    assert "device" not in Training(device="cpu").described()
    assert Training(**Training(steps=7, device="cpu").described()) == Training(steps=7)
