from pathlib import Path

import pytest

from gmvq import recipes
from gmvq.commands.options import OPTIONS, data_of, parse, run_of
from gmvq.models import AdversarialConfig


def run(*words):
    return run_of(parse("train", words))


@pytest.mark.parametrize("name", ["photos", "digits"])
def test_no_flag_gives_the_recipe(name):
    assert run(name) == recipes.make(name)


@pytest.mark.parametrize("name", ["cifar10", "fashion-mnist", "celeba", "folder"])
def test_a_path_gives_the_recipe_of_it(name):
    assert run(name, "--data", "somewhere") == recipes.make(name, "somewhere")
    assert run(name, "--data.source", "somewhere") == recipes.make(name, "somewhere")
    with pytest.raises(ValueError, match="--data PATH"):
        run(name)


def test_the_recipe_may_stand_anywhere():
    assert run("--steps", "5", "digits").training.steps == 5
    assert run("--steps", "5", "digits").model == recipes.digits().model
    # a folder of that name is a folder
    assert run("folder", "--data", "photos").data.source == "photos"
    assert run("--data", "photos", "folder").data.source == "photos"


def test_flags_at_the_top_and_nested_ones():
    values = "--{}quantizer vector --{}codebook-size 7 --{}steps 5 --{}batch-size 6 --{}seed 8 --{}tensorboard"
    short = run("photos", *values.format(*[""] * 6).split())
    nested = run("photos", *values.format(*["model."] * 2, *["training."] * 4).split())
    assert short == nested
    assert (short.model.quantizer, short.training.steps, short.training.batch_size) == ("vector", 5, 6)
    assert (short.model.codebook_size, short.training.seed, short.training.tensorboard) == (7, 8, True)
    assert run("photos", "--steps", "5", "--training.steps", "6").training.steps == 5


def test_everything_else_is_nested():
    made = run(
        "photos", "--model.width", "32", "--training.learning-rate", "1e-4", "--data.crop", "None", "--data.no-flip"
    )
    assert (made.model.width, made.training.learning_rate, made.data.crop, made.data.flip) == (32, 1e-4, None, False)


def test_the_models_channels_convert_the_data():
    assert run("folder", "--data", "x", "--model.channels", "1").data.channels == 1
    assert run("folder", "--data", "x", "--model.channels", "1", "--data.channels", "4").data.channels == 4


@pytest.mark.parametrize("verb", OPTIONS)
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
    assert "Number of codes. (default: 64)" in capsys.readouterr().out


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
        ("train", ["imagenet"]),
        ("train", ["photos", "--stpes", "3"]),
        ("train", ["photos", "--steps", "many"]),
        ("train", ["photos", "--model.width", "0"]),
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
    run = run_of(parse("train", ("photos", "--adversarial", "--discriminator.weight", "0.5", "--features", "vgg.pth")))
    assert run.adversarial == AdversarialConfig(weight=0.5)
    assert run.features == "vgg.pth"
    assert run_of(parse("train", ("photos",))).adversarial is None
    for words in (("--discriminator.weight", "0.5"), ("--features", "vgg.pth")):
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
    assert said in capsys.readouterr().err


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
