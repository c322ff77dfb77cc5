"""``codebook_size="auto"``: the number of codes under which held-out items take the fewest bits."""

import math
from dataclasses import replace

import pytest
from rich.console import Console

import gmvq
from gmvq import recipes
from gmvq.stages import TokenizerStage, codebook_size
from gmvq.stages.codebook_size import FIRST, SIZES, of_a_trial, tried
from gmvq.stages.layout import read_json
from gmvq.training import Interrupted, NonFiniteLossError, Training

QUIET = Console(quiet=True)


def tiny(**changes):
    settings = {"steps": 3, "batch_size": 8, "width": 8, "blocks": 1, "codebook_size": "auto", "evaluated": 20}
    return recipes.changed(recipes.digits(), **{**settings, **changes})


@pytest.mark.parametrize("best", SIZES)
def test_the_best_of_all_sizes_is_found_wherever_it_is(best):
    found = tried(lambda size: abs(math.log(size / best)))
    assert min(found, key=found.get) == best
    assert next(iter(found)) == FIRST
    # neither beyond the neighbours of the way there, nor any twice
    assert len(found) <= abs(SIZES.index(best) - SIZES.index(FIRST)) + 3


def test_a_size_that_diverges_is_not_taken():
    found = tried(lambda size: math.inf if size > 256 else -size)
    assert min(found, key=found.get) == 256
    assert all(math.isinf(bits) for bits in tried(lambda size: math.inf).values())


def test_a_trial_is_a_quarter_of_the_run_but_not_below_200_steps_or_beyond_the_run():
    for steps, wanted in ((10_000, 2500), (600, 200), (100, 100)):
        trial = of_a_trial(Training(steps=steps, warmup_steps=steps // 10, keep_best=True))
        assert (trial.steps, trial.warmup_steps) == (wanted, wanted // 10)


def test_a_run_finds_its_size_once(tmp_path, monkeypatch):
    out = tmp_path / "run"
    metrics = recipes.run(tiny(), out, console=QUIET)
    there = read_json(out / "codebook-size.json")
    bits = {int(size): value for size, value in there["elbo_bits_per_dim"].items()}
    assert there["codebook_size"] == min(bits, key=bits.get)
    assert len(bits) > 1
    assert all(math.isfinite(value) for value in bits.values())
    assert gmvq.load(out).codebook_size == there["codebook_size"]
    # trial and run are equal here, so their bits are
    assert bits[there["codebook_size"]] == pytest.approx(metrics["elbo_bits_per_dim"], rel=1e-3)
    assert not (out / "codebook-sizes").exists()
    # a finished run is known again, and one that goes on keeps its size
    monkeypatch.setattr(codebook_size, "tried", lambda bits_of: pytest.fail("tried again"))
    assert recipes.run(tiny(), out, console=QUIET) == metrics
    (out / "metrics.json").unlink()
    assert recipes.run(tiny(), out, console=QUIET, resume=True)["psnr"] == metrics["psnr"]


def test_trials_that_are_there_are_not_trained_again(tmp_path, monkeypatch):
    out, seen, measure = tmp_path / "run", [], TokenizerStage.measure

    def interrupted(stage, model):
        seen.append(stage.run.model.codebook_size)
        if len(seen) == 2:
            raise Interrupted(3, 3, stage.out)
        return measure(stage, model)

    monkeypatch.setattr(TokenizerStage, "measure", interrupted)
    with pytest.raises(Interrupted):
        recipes.run(tiny(), out, console=QUIET)
    recipes.run(tiny(), out, console=QUIET)
    assert seen[0] == FIRST
    assert seen.count(FIRST) == 1
    # those of a run with other settings are
    seen[:] = [0, 0]
    recipes.run(tiny(width=4), out, console=QUIET, overwrite=True)
    assert seen.count(FIRST) == 1


@pytest.mark.filterwarnings("ignore")
def test_where_all_trials_diverge_the_reason_is_said(tmp_path):
    with pytest.raises(NonFiniteLossError, match="Training stopped at step"):
        recipes.run(tiny(learning_rate=1e30), tmp_path / "run", console=QUIET)


def test_what_cannot_be_found_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="'codebook_size' of none cannot be 'auto': it has no codes"):
        recipes.run(tiny(quantizer="none"), tmp_path / "a", console=QUIET)
    with pytest.raises(ValueError, match="'codebook_size' must be that of the run to start from, got 'auto'"):
        recipes.run(replace(tiny(), start="runs/other"), tmp_path / "b", console=QUIET)
    with pytest.raises(ValueError, match="'codebook_size' must be a number for a model, got 'auto'"):
        gmvq.Autoencoder(tiny().model)
    with pytest.raises(ValueError, match="'codebook_size' must be one of auto, got 'many'"):
        replace(tiny().model, codebook_size="many")


@pytest.mark.parametrize("quantizer", ["finite-scalar", "product", "residual", "binary-spherical", "hierarchical"])
def test_every_quantizer_can_have_every_size(quantizer):
    for size in SIZES:
        model = replace(tiny().model, quantizer=quantizer, codebook_size=size)
        assert gmvq.Autoencoder(model).codebook_size >= 2
