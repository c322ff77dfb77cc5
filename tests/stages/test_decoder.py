"""Decoders by diffusion over a tokenizer of a run."""

import json
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from gmvq import hub, recipes, stages
from gmvq.__main__ import main
from gmvq.data import ArrayItems
from gmvq.data.sealing import read_record
from gmvq.modalities.image.pictures import write_image
from gmvq.models import Autoencoder, DiffusionDecoder
from gmvq.stages import DecoderRun, fit_decoder
from gmvq.stages.layout import finished

QUIET = Console(quiet=True)


def quick(**changes):
    often = {"warmup_steps": 2, "evaluate_every": 3, "checkpoint_every": 3}
    training = replace(DecoderRun().training, steps=6, batch_size=8, **often)
    return DecoderRun({"width": 8, "blocks": 1, "steps": 2}, replace(training, **changes))


def test_a_decoder_is_fitted_and_measured(run):
    before = hub.fingerprint(hub.load(run))
    metrics = fit_decoder(run, quick(), console=QUIET)
    stored = hub.load(run / "decoder", DiffusionDecoder)
    assert hub.tokenizer_of(run / "decoder", DiffusionDecoder) == before == hub.fingerprint(hub.load(run))
    assert read_record(run / "decoder/metrics.json") == metrics
    assert 0 < metrics["own_sharpness"] < metrics["sharpness"]  # hardly trained, it draws noise
    assert metrics["psnr"] < metrics["own_psnr"]
    model, data = hub.load(run), stages.load_data(stages.read_run(run).data)
    real = torch.stack([data.train[index] for index in range(64)]).float() / 255
    assert float(stored.scale) == pytest.approx(float((model.reconstruct(real) - real).std()), rel=0.2)
    lines = [json.loads(line) for line in (run / "decoder/log.jsonl").read_text().splitlines()]
    assert [line["held_out_loss"] > 0 for line in lines if line["kind"] == "evaluation"] == [True, True]


def test_a_decoder_that_was_stopped_ends_with_the_same_bits(run, tmp_path, stopping_at):
    fit_decoder(run, quick(), tmp_path / "whole", console=QUIET)
    with stopping_at(3):
        fit_decoder(run, quick(), tmp_path / "stopped", console=QUIET)
    fit_decoder(run, quick(), tmp_path / "stopped", resume=True, console=QUIET)
    weights = [(tmp_path / name / hub.WEIGHTS).read_bytes() for name in ("whole", "stopped")]
    assert weights[0] == weights[1]


def test_the_commands_fit_and_use_it(run, tmp_path, capsys):
    sizes = ["--steps", "3", "--batch-size", "8", "--width", "8", "--blocks", "1"]
    assert main(["fit-decoder", str(run), *sizes]) == 0
    assert "of the tokenizer's decoder" in capsys.readouterr().out
    data = stages.load_data(stages.read_run(run).data)
    write_image(tmp_path / "in.png", data.held_out[0].float() / 255)
    words = ["reconstruct", str(run), str(tmp_path / "in.png")]
    files = [tmp_path / f"{name}.png" for name in ("own", "drawn", "again", "other")]
    decoder = ["--decoder", str(run / "decoder")]
    for file, more in zip(files, ([], decoder, decoder, [*decoder, "--seed", "1"]), strict=True):
        assert main([*words, str(file), *more]) == 0
    own, drawn, again, other = (file.read_bytes() for file in files)
    assert drawn == again
    assert len({own, drawn, other}) == 3
    assert main([*words, str(files[0]), "--seed", "1"]) == 1
    assert "'seed' must be left out without 'decoder'" in capsys.readouterr().err
    assert main(["fit-prior", str(run), "--prior", "n-gram"]) == 0
    sheets = [tmp_path / "plain.png", tmp_path / "detailed.png"]
    for sheet, more in zip(sheets, ([], decoder), strict=True):
        assert main(["sample", str(run), "-n", "4", "--out", str(sheet), *more]) == 0
    assert sheets[0].read_bytes() != sheets[1].read_bytes()


def test_a_decoder_of_another_tokenizer_is_refused(run, tmp_path, capsys):
    fit_decoder(run, quick(), console=QUIET)
    other = recipes.changed(recipes.digits(), steps=2, width=8, blocks=1, batch_size=8, codebook_size=16)
    recipes.run(other, tmp_path / "other", console=QUIET, report=False)
    words = ["reconstruct", str(tmp_path / "other"), "x.png", "y.png", "--decoder", str(run / "decoder")]
    assert main(words) == 1
    assert "was fitted to the tokenizer" in capsys.readouterr().err
    with pytest.raises(ValueError, match="'out' must be a folder of its own for the decoder"):
        fit_decoder(run, quick(), run, console=QUIET)
    vae = recipes.changed(recipes.digits(), steps=1, width=8, blocks=1, batch_size=8)
    recipes.run(replace(vae, model=replace(vae.model, quantizer="none")), tmp_path / "vae", console=QUIET, report=False)
    with pytest.raises(ValueError, match="must be of a tokenizer with codes"):
        fit_decoder(tmp_path / "vae", quick(), console=QUIET)


def test_images_that_come_back_exactly_are_measured(run, monkeypatch):
    """The PSNR of an exact copy is infinite and the detail of a flat image is none: JSON holds neither."""
    data = stages.load_data(stages.read_run(run).data)
    flat = data._replace(held_out=ArrayItems(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), 2))
    for name in ("decode", "decode_with_values"):
        whole = getattr(Autoencoder, name)
        monkeypatch.setattr(Autoencoder, name, _black(whole))
    metrics = fit_decoder(run, quick(), data=flat, console=QUIET)
    assert metrics["own_psnr"] == 100.0
    assert metrics["sharpness"] is metrics["own_sharpness"] is None


def _black(decode):
    def decoded(model, codes, size=None, **options):
        found = decode(model, codes, size, **options)
        return torch.zeros_like(found) if isinstance(found, torch.Tensor) else (torch.zeros_like(found[0]), found[1])

    return decoded


def test_only_the_same_settings_are_finished(run):
    metrics = fit_decoder(run, quick(), console=QUIET)
    assert fit_decoder(run, quick(), console=QUIET) == metrics
    with pytest.raises(ValueError, match=r"differs in training.steps \(6 there, 7 now\)"):
        fit_decoder(run, quick(steps=7), console=QUIET)
    record = json.loads((run / "decoder/run.json").read_text())["run"]
    mark = hub.fingerprint(hub.load(run))
    assert finished(run / "decoder", record, mark) == metrics
    assert finished(run / "decoder", record, "another tokenizer") is None
