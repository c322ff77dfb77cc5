import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console

from gmvq import hub, recipes, stages
from gmvq.data import ArrayItems
from gmvq.data.sealing import read_record
from gmvq.modalities import Data, Image
from gmvq.priors import AbstractPrior, AutoregressivePrior, MaskedPrior, NGram, Sampling
from gmvq.stages import PriorRun, fit_prior
from gmvq.stages.tiling import tiled
from gmvq.training.tasks import PriorTask

QUIET = Console(quiet=True)
SMALL = {"width": 16, "depth": 1, "heads": 2}


def quick(prior="autoregressive", **changes):
    training = replace(PriorRun().training, steps=6, batch_size=8, warmup_steps=2, evaluate_every=3, checkpoint_every=3)
    return PriorRun(prior, {} if prior in ("n-gram", "frequencies") else SMALL, replace(training, **changes))


@pytest.mark.parametrize(
    ("name", "kind"), [("autoregressive", AutoregressivePrior), ("masked", MaskedPrior), ("n-gram", NGram)]
)
def test_a_prior_is_fitted_and_measured(run, name, kind):
    metrics = fit_prior(run, quick(name), console=QUIET)
    stored = hub.load(run / "prior", AbstractPrior)
    assert isinstance(stored, kind)
    assert hub.tokenizer_of(run / "prior", AbstractPrior) == hub.fingerprint(hub.load(run))
    assert stored.shape.classes == 10
    data = stages.load_data(stages.read_run(run).data)
    codes = torch.stack([hub.load(run).encode(data.held_out[i][None])[0] for i in range(len(data.held_out))])
    with torch.no_grad():
        nats = stored.quick_log_prob(codes, data.held_out.labels)
    bits = -nats.sum().item() / codes.numel() / np.log(2)
    # a bound is an estimate that depends on how images are batched
    assert metrics["bits_per_code"] == pytest.approx(bits, rel=0.05 if name == "masked" else 1e-4)
    assert metrics["items"] == len(codes)
    assert read_record(run / "prior/metrics.json") == metrics
    assert 0 < metrics["n_gram_bits_per_code"] < 5
    assert metrics["bits_per_dim"] > metrics["bits_per_code"] * codes[0].numel() / data.held_out[0].numel()


def test_few_items_are_looked_at_often_and_what_is_known_by_heart_is_said(run, monkeypatch):
    monkeypatch.setattr("gmvq.stages.prior.EPOCHS", 0)
    metrics = fit_prior(run, quick(steps=30, evaluate_every=1000), console=QUIET)
    log = [json.loads(line) for line in (run / "prior/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log if line["kind"] == "evaluation"] == [25, 30]
    worse = metrics["bits_per_code"] > metrics["frequencies_bits_per_code"]
    assert ["memorized" in warning for warning in metrics["warnings"]] == [True] * worse
    worst = fit_prior(run, quick(steps=1, learning_rate=1e-9), run.parent / "worst", console=QUIET)
    assert "counted frequencies" in worst["warnings"][-1]
    assert fit_prior(run, quick("frequencies"), run.parent / "counted", console=QUIET)["warnings"] == []


def test_residual_codes_are_learned_level_by_level(tmp_path):
    run = recipes.changed(recipes.digits(), steps=2, width=8, blocks=1, batch_size=8, codebook_size=64)
    model = replace(run.model, quantizer="residual", code_dim=6, quantizer_options={"levels": 3})
    recipes.run(replace(run, model=model), tmp_path, console=QUIET, report=False)
    metrics = fit_prior(tmp_path, quick(), console=QUIET)
    prior = hub.load(tmp_path / "prior", AbstractPrior)
    assert prior.shape.codebook_sizes == (4, 4, 4)
    assert metrics["levels"] == 3
    assert 0 < metrics["n_gram_bits_per_code"] < 2.1
    pixels = stages.load_data(run.data).held_out[0].numel()
    assert metrics["bits_per_dim"] > 3 * metrics["bits_per_code"] * prior.shape.places / pixels
    with pytest.raises(ValueError, match="must have one level"):
        fit_prior(tmp_path, quick("latent-flow"), tmp_path / "flow", console=QUIET)


def test_a_flow_of_latents_needs_components_of_equal_weight(tmp_path):
    run = recipes.changed(recipes.digits(), steps=2, width=8, blocks=1, batch_size=8, codebook_size=16)
    options = {"learned": ["mixture_weights"]}
    recipes.run(
        replace(run, model=replace(run.model, quantizer_options=options)), tmp_path, console=QUIET, report=False
    )
    with pytest.raises(ValueError, match="components of equal weight and variance"):
        fit_prior(tmp_path, quick("latent-flow"), console=QUIET)


@pytest.mark.parametrize("name", ["code-flow", "latent-flow"])
def test_a_flow_is_fitted_and_has_no_likelihood(run, name):
    recipe = quick(name)
    metrics = fit_prior(run, recipe, console=QUIET)
    assert metrics["bits_per_code"] is None
    assert metrics["bits_per_dim"] is None
    assert metrics["n_gram_bits_per_code"] > 0
    prior = hub.load(run / "prior", AbstractPrior)
    assert prior.sample(2, torch.tensor([1, 2]), Sampling(steps=3)).shape == (2, *prior.shape.grid)
    lines = [json.loads(line) for line in (run / "prior/log.jsonl").read_text().splitlines()]
    assert all(line["held_out_loss"] > 0 for line in lines if line["kind"] == "evaluation")
    if name == "latent-flow":
        quantizer = hub.load(run).bottleneck
        torch.testing.assert_close(prior.codes, quantizer.code_vectors)
        assert prior.deviation > 0
        assert prior.codebook_dim == quantizer.codebook_dim


def test_images_are_tokenized_once(run, monkeypatch):
    fit_prior(run, quick("frequencies"), console=QUIET)
    monkeypatch.setattr("gmvq.stages.prior.tokenize", lambda *_: pytest.fail("tokenized again"))
    again = fit_prior(run, quick("n-gram"), overwrite=True, console=QUIET)
    assert again["frequencies_bits_per_code"] > 0
    data = stages.load_data(stages.read_run(run).data)
    inverted = data._replace(train=ArrayItems(255 - data.train.array, 2, data.train.labels))
    with pytest.raises(pytest.fail.Exception, match="tokenized again"):  # other images of the same names
        fit_prior(run, quick("n-gram"), data=inverted, overwrite=True, console=QUIET)
    monkeypatch.undo()
    damaged = run / "prior/tokens/train.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    assert fit_prior(run, quick("n-gram"), overwrite=True, console=QUIET) == again


def test_a_stopped_run_resumes_bit_for_bit(run, tmp_path, stopping_at):
    whole = fit_prior(run, quick(), tmp_path / "whole", console=QUIET)
    with stopping_at(3):
        fit_prior(run, quick(), tmp_path / "stopped", console=QUIET)
    resumed = fit_prior(run, quick(), tmp_path / "stopped", resume=True, console=QUIET)
    assert {**resumed, "seconds": 0} == {**whole, "seconds": 0}
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "stopped")]
    assert files[0] == files[1]
    with pytest.raises(ValueError, match="holds another prior"):
        fit_prior(run, quick(seed=1), tmp_path / "stopped", resume=True, console=QUIET)
    with pytest.raises(ValueError, match="The checkpoint is of another run"):
        fit_prior(run, quick(seed=1), tmp_path / "stopped", resume=True, overwrite=True, console=QUIET)


def test_images_of_mixed_sizes_are_cut_into_tiles(tmp_path):
    images = tmp_path / "pictures"
    images.mkdir()
    import PIL.Image

    for index, size in enumerate([(40, 24), (24, 24), (33, 57), (16, 99)]):
        pixels = np.random.default_rng(index).integers(0, 256, (*size, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(images / f"{index}.png")
    run = recipes.changed(recipes.folder(str(images)), steps=2, width=8, blocks=1, batch_size=4, codebook_size=8)
    run = replace(run, data=replace(run.data, size=24))
    recipes.run(run, tmp_path / "run", console=QUIET, report=False)
    metrics = fit_prior(tmp_path / "run", quick("n-gram"), console=QUIET)
    stored = hub.load(tmp_path / "run/prior", AbstractPrior)
    assert stored.shape.grid == (6, 6)
    assert stored.shape.classes == 0
    assert "unconditional_bits_per_code" not in metrics


def test_a_prior_without_classes(run):
    metrics = fit_prior(run, replace(quick(), classes=False), console=QUIET)
    assert hub.load(run / "prior", AbstractPrior).shape.classes == 0
    assert "unconditional_bits_per_code" not in metrics
    assert "classes" not in metrics["protocol"]


def test_the_weights_are_chosen_by_images_that_no_figure_is_of(run, monkeypatch):
    seen = []

    class Recorded(PriorTask):
        def __init__(self, prior, train, held_out, *rest):
            seen.append((train.codes, held_out.codes))
            super().__init__(prior, train, held_out, *rest)

    monkeypatch.setattr("gmvq.stages.prior.PriorTask", Recorded)
    fit_prior(run, quick(), console=QUIET)
    ((learned_from, chosen_by),) = seen
    data = stages.load_data(stages.read_run(run).data)
    codes = hub.load(run).encode(torch.stack([data.train[i] for i in range(len(data.train))]))
    assert len(learned_from) + len(chosen_by) == len(codes)
    assert torch.equal(chosen_by, codes[19::20])
    assert torch.equal(learned_from[:19], codes[:19])


def test_a_prior_that_is_finished_is_found_again(run):
    metrics = fit_prior(run, quick("frequencies"), console=QUIET)
    before = {path: path.read_bytes() for path in (run / "prior").glob("*.json")}
    assert fit_prior(run, quick("frequencies"), console=QUIET) == metrics
    with pytest.raises(ValueError, match="holds another prior, which differs in options"):
        fit_prior(run, quick("masked"), console=QUIET)
    assert {path: path.read_bytes() for path in (run / "prior").glob("*.json")} == before
    assert fit_prior(run, quick("n-gram"), overwrite=True, resume=True, console=QUIET)["bits_per_code"] > 0


def test_a_folder_of_something_else_is_not_overwritten(run):
    weights = (run / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="'out' must be a folder of its own"):
        fit_prior(run, quick("frequencies"), run, console=QUIET)
    assert (run / "model.safetensors").read_bytes() == weights


def test_splits_of_different_sizes_get_tiles_of_one(run):
    tokenizer = hub.load(run)
    sides = {"train": (9, 9), "held_out": (12, 15)}
    parts = {side: ArrayItems(torch.zeros(2, 1, *size, dtype=torch.uint8), 2) for side, size in sides.items()}
    found = tiled(Data("mixed", parts["train"], parts["held_out"], Image(1)), None, tokenizer.downsampling)
    assert {*found.train.sizes, *found.held_out.sizes} == {(8, 8)}
    assert len(found.train) == 2
    tiny = ArrayItems(torch.zeros(2, 1, 1, 1, dtype=torch.uint8), 2)
    with pytest.raises(ValueError, match="must have sides of at least 2 samples"):
        tiled(Data("tiny", tiny, tiny, Image(1)), None, tokenizer.downsampling)


def test_what_cannot_be_fitted_gets_a_reason(run, tmp_path):
    with pytest.raises(FileNotFoundError, match="Give the folder of a run"):
        fit_prior(tmp_path / "nothing", console=QUIET)
    with pytest.raises(ValueError, match="'prior' must be one of autoregressive"):
        fit_prior(run, replace(quick(), prior="oracle"), console=QUIET)
    with pytest.raises(ValueError, match="'options' must be fields of the masked prior"):
        fit_prior(run, replace(quick("masked"), options={"hight": 3}), console=QUIET)
    with pytest.raises(ValueError, match="A prior that counts has no options"):
        fit_prior(run, replace(quick("n-gram"), options={"width": 3}), console=QUIET)


@pytest.mark.parametrize("name", ["autoregressive", "n-gram"])
def test_a_damaged_or_foreign_prior_is_refused(run, name):
    fit_prior(run, quick(name), console=QUIET)
    weights = run / "prior/model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="is damaged"):
        hub.load(run / "prior", AbstractPrior)
    weights.write_bytes(whole)
    config = run / "prior/config.json"
    text = config.read_text()
    config.write_text(text.replace('"fingerprint": "', '"fingerprint": "0'))
    with pytest.raises(ValueError, match="not what was written"):
        hub.load(run / "prior", AbstractPrior)
    with pytest.raises(ValueError, match=r"is not of format 'gmvq\.prior'"):
        hub.load(run, AbstractPrior)
    with pytest.raises(FileNotFoundError, match="gmvq fit-prior RUN"):
        hub.load(run / "none", AbstractPrior)
