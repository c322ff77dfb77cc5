from dataclasses import replace
from pathlib import Path

import pytest

from gmvq import recipes
from gmvq.__main__ import main
from gmvq.commands import VERBS, parse
from gmvq.commands.compare import data_of
from gmvq.commands.train import run_of
from gmvq.modalities import Series
from gmvq.models import AdversarialConfig


def run(*words):
    return run_of(parse("train", words))


def planned(recipe):
    """A recipe whose model waits for the data."""
    return replace(recipe, model=replace(recipe.model, modality=None))


@pytest.mark.parametrize("name", ["photos", "digits"])
def test_no_flag_gives_the_recipe(name):
    assert run(name) == planned(recipes.make(name))


@pytest.mark.parametrize("name", ["cifar10", "fashion-mnist", "celeba"])
def test_a_path_gives_the_recipe_of_it(name):
    assert run(name, "--data", "somewhere") == planned(recipes.make(name, "somewhere"))
    with pytest.raises(ValueError, match="--data PATH"):
        run(name)


def test_a_folder_is_looked_at(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    assert run("folder", "--data", str(tmp_path)) == recipes.folder(tmp_path)
    with pytest.raises(FileNotFoundError, match="There is nothing at"):
        run("folder", "--data", str(tmp_path / "none"))
    (tmp_path / "a.png").rename(tmp_path / "a.xyz")
    with pytest.raises(ValueError, match="looks like data of any kind"):
        run("folder", "--data", str(tmp_path))


def test_the_recipe_may_stand_anywhere():
    assert run("--steps", "5", "digits").training.steps == 5
    assert run("--steps", "5", "digits").model.codebook_size == recipes.digits().model.codebook_size
    # a folder of that name is a folder
    assert run("cifar10", "--data", "photos").data.source == "photos"
    assert run("--data", "photos", "cifar10").data.source == "photos"


def test_every_part_of_a_run_has_flags():
    words = "--quantizer vector --codebook-size 7 --steps 5 --batch-size 6 --seed 8 --tensorboard --width 32"
    made = run("photos", *words.split(), "--learning-rate", "1e-4", "--size", "None", "--no-mirror", "--channels", "1")
    assert (made.model.quantizer, made.model.codebook_size, made.model.width) == ("vector", 7, 32)
    assert (made.training.steps, made.training.batch_size, made.training.seed) == (5, 6, 8)
    assert (made.training.tensorboard, made.training.learning_rate) == (True, 1e-4)
    assert (made.data.size, made.data.mirror, made.data.modality.channels) == (None, False, 1)
    assert run("photos", "--from", "runs/x", "--quantizer-options", '{"noise": 1}').start == "runs/x"
    with pytest.raises(ValueError, match="must be a JSON object"):
        run("photos", "--quantizer-options", "{")
    with pytest.raises(ValueError, match="have no such setting"):
        run("photos", "--label", "x")


def test_a_setting_of_two_modalities_is_of_the_type_of_each():
    assert type(run("speech", "--data", "x", "--rate", "8000").data.modality.rate) is int
    assert run("series", "--rate", "0.5").data.modality == Series(rate=0.5)
    assert run("series", "--rate", "50").data.modality == Series(rate=50.0)
    with pytest.raises(ValueError, match="'rate' must be an integer"):
        run("speech", "--data", "x", "--rate", "0.5")


def test_what_is_learned_from_data_has_no_flag(capsys):
    with pytest.raises(SystemExit):
        parse("train", ["sentences", "--help"])
    shown = capsys.readouterr().out
    assert "--vocabulary-size" in shown
    assert not any(f"{flag} " in shown for flag in ("--subwords", "--vocabulary", "--fill"))


@pytest.mark.parametrize("verb", VERBS)
def test_help_is_whole(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(verb, ["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert f"usage: gmvq {verb}" in shown
    assert "--json" in shown


def test_help_shows_the_recipes_own_values(capsys):
    with pytest.raises(SystemExit):
        parse("train", ["digits", "--help"])
    shown = capsys.readouterr().out
    assert "(default: 64)" in shown[shown.index("--codebook-size") : shown.index("--code-dim")]


def test_compare_takes_a_path_for_each_recipe():
    options = parse("compare", ["cifar10", "photos", "--data", "cifar10=a=b", "--data", "photos=c", "--seeds", "2"])
    assert data_of(options) == {"cifar10": "a=b", "photos": "c"}
    assert options.out == Path("runs/compare")
    assert options.seeds == 2


@pytest.mark.parametrize("entry", ["x", "photos=", "digits=x", "=x"])
def test_compare_with_a_wrong_path(entry):
    with pytest.raises(ValueError, match="RECIPE=PATH"):
        data_of(parse("compare", ["photos", "--data", entry]))


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        ("train", []),
        ("train", ["photos", "--stpes", "3"]),
        ("train", ["photos", "--steps", "many"]),
        ("train", ["photos", "--width", "0"]),
        ("compare", []),
        ("tokenize", ["run"]),
    ],
)
def test_wrong_usage(verb, words, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(verb, words)
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err


def test_a_discriminator_has_options_of_its_own():
    run = run_of(parse("train", ("photos", "--adversarial", "--discriminator-weight", "0.5", "--features", "vgg.pth")))
    assert run.adversarial == AdversarialConfig(weight=0.5)
    assert run.features == "vgg.pth"
    assert run_of(parse("train", ("photos",))).adversarial is None
    for words in (("--discriminator-weight", "0.5"), ("--features", "vgg.pth")):
        with pytest.raises(ValueError, match="need --adversarial"):
            run_of(parse("train", ("photos", *words)))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--protocol", "none-such", "--data", "x"), "'--protocol' must be one of cifar10-8x8-k1024-short"),
        (("--protocol", "cifar10-8x8-k1024-short"), "got 0. Write --data PATH"),
        (("photos", "--protocol", "cifar10-8x8-k1024-short", "--data", "x"), "leave out photos"),
        (("--protocol", "cifar10-8x8-k1024-short", "--data", "x", "--steps", "3"), "leave out --steps"),
        (("photos", "--quantizers", "voronoi"), "'--quantizers' must be of gaussian-mixture"),
        (("photos", "--jobs", "2"), "--jobs is of a protocol's table"),
        ((), "or --protocol"),
    ],
)
def test_compare_is_of_recipes_or_of_a_protocol(capsys, words, said):
    with pytest.raises(SystemExit) as left:
        parse("compare", words)
    assert left.value.code == 2
    assert said in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_a_protocol_takes_contenders_and_groups():
    words = (
        "--protocol",
        "cifar10-8x8-k1024-short",
        "--data",
        "x",
        "--quantizers",
        "all",
        "study:noise",
        "--jobs",
        "2",
    )
    options = parse("compare", words)
    assert options.quantizers == ("all", "study:noise")
    assert (options.protocol, options.jobs, options.recipes) == ("cifar10-8x8-k1024-short", 2, ())


@pytest.mark.parametrize("text", ["[]", "7", "{", "[" * 100_000])
def test_options_of_the_quantizer_are_an_object(capsys, text):
    assert main(["train", "digits", "--quantizer-options", text]) == 1
    said = capsys.readouterr().err
    assert "'quantizer-options' must be a JSON object" in said
    assert len(said) < 300
