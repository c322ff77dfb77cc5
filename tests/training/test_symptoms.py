"""A run that went wrong says what was seen, what is normal and what to try."""

from io import StringIO

import pytest
import torch
from rich.console import Console

from gmvq.training import NonFiniteLossError, train
from gmvq.training.journal import read_log
from gmvq.training.symptoms import symptoms


def log(first=2.0, last=1.0, key="loss", **evaluation):
    return [
        {"kind": "train", "step": 20, key: first, "loss": 5.0 if key != "loss" else first},
        {"kind": "train", "step": 40, key: last, "loss": 6.0 if key != "loss" else last},
        {"kind": "evaluation", "step": 40, "usage": 0.9, "used_codes": 461, "tokens": 9000, **evaluation},
    ]


@pytest.mark.parametrize(
    "lines",
    [
        [],
        log(),
        log(key="reconstruction"),
        log(last=None),
        log()[:1],
        log(usage=None, used_codes=None, tokens=None),
        log(usage=60 / 2**36, used_codes=60, tokens=64),  # more codes than tokens
    ],
)
def test_a_run_that_is_well_has_no_symptoms(lines):
    assert symptoms(lines) == ()


@pytest.mark.parametrize("last", [2.0, 3.5])
@pytest.mark.parametrize(("key", "name"), [("loss", "The loss"), ("reconstruction", "The reconstruction loss")])
def test_a_loss_that_did_not_fall(last, key, name):
    (warning,) = symptoms(log(last=last, key=key))
    assert warning.startswith(f"{name} did not fall: 2 at step 20, {last:g} at step 40. Normally ")
    assert "Lower 'learning_rate'" in warning
    assert "\n" not in warning


def test_a_codebook_that_has_collapsed():
    (warning,) = symptoms(log(usage=13 / 512, used_codes=13))
    assert "held-out data use 13 of 512 codes (2.5%). Normally they use more than 80 %." in warning
    assert "'codebook_size'" in warning
    (warning,) = symptoms(log(usage=6 / 2**36, used_codes=6, tokens=64))
    assert "6 of 68,719,476,736 codes" in warning


def test_the_warnings_are_in_the_result_and_on_the_console(data, make_model, make_training, tmp_path):
    console = Console(file=StringIO(), width=80)
    training = make_training(learning_rate=1e-9, warmup_steps=0, averaging_decay=0.0)
    model = make_model("vector")
    with torch.no_grad():
        model.bottleneck.learned[1:] = 1e3  # one code is nearest to all
    warnings = train(model, data, training, tmp_path, console=console).warnings
    assert any("codebook has collapsed: held-out data use 1 of 16 codes (6.2%)" in warning for warning in warnings)
    for warning in warnings:
        assert f"Warning: {warning}\n" in console.file.getvalue()
    # again for a finished run
    assert train(make_model("vector"), data, training, tmp_path, resume=True).warnings == warnings


def test_a_loss_that_is_not_finite_says_what_to_try(data, make_model, make_training, tmp_path):
    model = make_model(likelihood="mean-squared-error")
    model.likelihood.register_forward_hook(lambda *_: torch.tensor(torch.nan, requires_grad=True))
    with pytest.raises(NonFiniteLossError, match=r"Normally all are finite\. Lower 'learning_rate' \(it is 0\.002\)"):
        train(model, data, make_training(), tmp_path)


def test_a_log_that_is_cut_or_missing_is_read_as_far_as_it_goes(tmp_path):
    assert read_log(tmp_path) == []
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n[1]\n' + "[" * 10_000 + '\n{"step": 2, "loss": NaN}\n{"step": 3')
    assert read_log(tmp_path) == [{"step": 1}]  # a log has no NaN either
