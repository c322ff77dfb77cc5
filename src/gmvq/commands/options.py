"""The options of each verb: a typed dataclass, from which tyro makes the flags and their help."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tyro

from gmvq import benchmarking, leaderboard, recipes
from gmvq.commands.editing import InterpolateOptions, SwapOptions
from gmvq.commands.generating import CompleteOptions, FitDecoderOptions, FitPriorOptions, JudgeOptions, SampleOptions
from gmvq.commands.loading import RunFolder
from gmvq.comparison import QUANTIZERS
from gmvq.models import AdversarialConfig, AutoencoderConfig
from gmvq.models.bottlenecks import QuantizerName
from gmvq.recipes import DataConfig, Run
from gmvq.training import Training

RecipeName = Literal["photos", "digits", "cifar10", "fashion-mnist", "celeba", "folder"]
Part = Literal["all", "train", "held-out"]
Section = Literal["nearest", "vector-step", "mixture-step", "k-means", "memory", "growth"]
Shapes = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NxLxK ...")]
Peer = Literal["product", "cdist", "vector-quantize-pytorch", "faiss", "naive"]
_CONFIG = (tyro.conf.FlagCreatePairsOff,)


@dataclass(frozen=True)
class TrainOptions:
    """Train a tokenizer and write its model, figures and report.html into a folder.

    Args:
        recipe: What to learn from. photos and digits come with gmvq; the others need --data.
        quantizer: GM-VQ, VQ-VAE with its codebook by gradient or by moving averages, or none: a VAE.
        data: A folder of images, a .npy or .npz file, or the files of CIFAR-10, Fashion-MNIST or CelebA.
        out: Folder of the run; by default runs/RECIPE.
        steps: Optimizer steps.
        batch_size: Images in a batch.
        codebook_size: Number of codes.
        seed: Of the first weights, of crops, order and noise.
        resume: Go on from the last checkpoint in the run's folder.
        tensorboard: Write a log for TensorBoard too.
        json: Print one JSON object on standard output, and nothing else there.
        images: How images are prepared.
        model: What the autoencoder is made of.
        training: How it is trained.
        adversarial: Train against a discriminator, for sharper images.
        discriminator: How that discriminator works.
        features: Compare features, too, and let the discriminator see them in place of pixels. Their network is a file
            with the weights of torchvision's VGG-16, the folder of a classifier that gmvq judge has left, or 'learned'
            for a small one that learns from the data first.
    """

    recipe: Annotated[RecipeName, tyro.conf.Positional]
    quantizer: QuantizerName
    steps: int
    batch_size: int
    codebook_size: int
    seed: int
    images: Annotated[DataConfig, tyro.conf.arg(name="data")]
    model: AutoencoderConfig
    training: Training
    discriminator: AdversarialConfig = field(default_factory=AdversarialConfig)
    data: Path | None = None
    out: Path | None = None
    adversarial: bool = False
    features: str | None = None
    resume: bool = False
    tensorboard: bool = False
    json: bool = False


@dataclass(frozen=True)
class EvaluateOptions:
    """Measure a trained tokenizer on images, by default on those that its run held out.

    Args:
        run: Folder of the run.
        data: Measure on these images in place of the run's own.
        part: Which side of the data's split.
        limit: Measure the first images only.
        samples: Draws of z for each image in the bounds of the likelihood.
        batch_size: Images at a time.
        seed: Of all draws.
        json: Print one JSON object on standard output, and nothing else there.
    """

    run: RunFolder
    data: Path | None = None
    part: Part = "held-out"
    limit: int | None = None
    samples: int = 16
    batch_size: int = 64
    seed: int = 0
    json: bool = False


@dataclass(frozen=True)
class ReconstructOptions:
    """Send images through their codes and back, and write what comes out as PNG files of the same names.

    Args:
        run: Folder of the run.
        source: An image, a folder of images, or other data.
        out: A .png file for one image, else a folder.
        decoder: Folder of a diffusion decoder to decode with, as RUN/decoder; by default the tokenizer's own.
        seed: Of that decoder's noise.
        json: Print one JSON object on standard output, and nothing else there.
    """

    run: RunFolder
    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="IN", name="in")]
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    decoder: Path | None = None
    seed: int = 0
    json: bool = False


@dataclass(frozen=True)
class TokenizeOptions:
    """Write the codes of images to one safetensors file, with all that is needed to decode them.

    Args:
        run: Folder of the run.
        data: A folder of images, a .npy or .npz file, or the files of CIFAR-10 or Fashion-MNIST.
        out: The file to write.
        part: Which side of the data's split.
        batch_size: Images at a time.
        json: Print one JSON object on standard output, and nothing else there.
    """

    run: RunFolder
    data: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    part: Part = "all"
    batch_size: int = 64
    json: bool = False


@dataclass(frozen=True)
class DetokenizeOptions:
    """Decode a file of codes to PNG files under the images' names.

    Args:
        run: Folder of the run that made the codes.
        tokens: A file made by gmvq tokenize.
        out: Folder for the images.
        force: Decode although the codes are another tokenizer's.
        batch_size: Images at a time.
        json: Print one JSON object on standard output, and nothing else there.
    """

    run: RunFolder
    tokens: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TOKENS")]
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    force: bool = False
    batch_size: int = 64
    json: bool = False


@dataclass(frozen=True)
class InfoOptions:
    """Show what is in a run's folder: the model, what it learned from, its figures.

    Args:
        run: Folder of the run.
        json: Print one JSON object on standard output, and nothing else there.
    """

    run: RunFolder
    json: bool = False


@dataclass(frozen=True)
class CompareOptions:
    """Train several quantizers on the same data with the same network, steps and seeds, and compare them.

    With --protocol, rows are added to the table of a frozen protocol instead. Runs that are finished are not trained
    again: after an interruption, give the same command once more.

    Args:
        recipes: What to learn from: one or more of photos, digits, cifar10, fashion-mnist, celeba, folder.
        quantizers: Which quantizers to compare. Under a protocol: contenders, all, study:NAME or studies.
        seeds: Runs of each, with the seeds 0, 1, ...
        data: Where a recipe's data are, once for each that needs it, as --data cifar10=PATH; under a protocol --data
            PATH.
        out: Folder of the runs and the table.
        steps: Optimizer steps; by default each recipe's own.
        batch_size: Images in a batch; by default each recipe's own.
        codebook_size: Number of codes; by default each recipe's own.
        width: Channels of the networks; by default each recipe's own.
        threads: CPU threads; by default PyTorch's choice.
        protocol: Name of a frozen protocol: data, network and training are its own.
        table: The JSON file that a protocol's rows are added to; by default OUT/PROTOCOL.json.
        jobs: Runs at a time under a protocol; by default one for each CPU core, or 8 on a GPU.
        again: Under a protocol, run also what the table has.
        compile: Under a protocol, translate each model by torch.compile first: a minute, and fewer kernels on a GPU.
        json: Print one JSON object on standard output, and nothing else there.
    """

    recipes: Annotated[tuple[RecipeName, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE ...")] = ()
    quantizers: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")] = QUANTIZERS
    seeds: int = 3
    data: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="[RECIPE=]PATH")] = ()
    out: Path = Path("runs/compare")
    steps: int | None = None
    batch_size: int | None = None
    codebook_size: int | None = None
    width: int | None = None
    threads: int | None = None
    protocol: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    table: Path | None = None
    jobs: int | None = None
    again: bool = False
    compile: bool = False
    json: bool = False


@dataclass(frozen=True)
class BenchOptions:
    """Time gmvq's kernels and training steps beside other libraries on this machine, and measure their memory.

    Libraries that are not installed are left out; faiss-cpu and vector-quantize-pytorch come with the extra "bench".
    What is measured is written after each row, so that Ctrl-C keeps it.

    Args:
        shapes: Latents x features x codes of the tables of times.
        only: Which sections to measure.
        against: Which others take part.
        rounds: Interleaved rounds, of which the figures are medians.
        threads: CPU threads of all; by default PyTorch's choice.
        memory_shapes: Shapes at which peak memory is measured, each call in a process of its own.
        growth_shapes: Shapes over which time and memory grow with the number of codes.
        out: Folder of bench.json, bench.md and bench.png, which are replaced.
        json: Print one JSON object on standard output, and nothing else there.
    """

    shapes: Shapes = tuple(map(str, benchmarking.SHAPES))
    only: tuple[Section, ...] = get_args(Section)
    against: tuple[Peer, ...] = get_args(Peer)
    rounds: int = 7
    threads: int | None = None
    memory_shapes: Shapes = tuple(map(str, benchmarking.MEMORY_SHAPES))
    growth_shapes: Shapes = tuple(map(str, benchmarking.GROWTH_SHAPES))
    out: Path = Path("runs/bench")
    json: bool = False


OPTIONS: dict[str, type[Any]] = {
    "train": TrainOptions,
    "evaluate": EvaluateOptions,
    "reconstruct": ReconstructOptions,
    "tokenize": TokenizeOptions,
    "detokenize": DetokenizeOptions,
    "info": InfoOptions,
    "fit-prior": FitPriorOptions,
    "fit-decoder": FitDecoderOptions,
    "sample": SampleOptions,
    "complete": CompleteOptions,
    "interpolate": InterpolateOptions,
    "swap": SwapOptions,
    "judge": JudgeOptions,
    "compare": CompareOptions,
    "bench": BenchOptions,
}


def parse(verb: str, words: Sequence[str]) -> Any:  # noqa: ANN401 (the options of the verb)
    """The options of a verb.

    Raises:
        SystemExit: After help was printed (0), or if the words are no options of the verb (2).
    """
    prog, words = f"gmvq {verb}", list(words)
    if verb == "train":
        return tyro.cli(TrainOptions, prog=prog, args=words, config=_CONFIG, default=_train_options(_recipe_of(words)))
    options = tyro.cli(OPTIONS[verb], prog=prog, args=words, config=_CONFIG)
    if verb == "compare" and (problem := _compare_problem(options)):
        print(problem, file=sys.stderr)
        raise SystemExit(2)
    return options


def _compare_problem(options: CompareOptions) -> str | None:
    """What is wrong with the words of ``compare``: they are of recipes or of a protocol, not of both."""
    if options.protocol is None:
        if not options.recipes:
            return f"Missing from command line: one or more of {', '.join(recipes.NAMES)}, or --protocol."
        known = get_args(QuantizerName)
        unknown = [name for name in options.quantizers if name not in known]
        given = [name for name in ("table", "jobs", "again", "compile") if getattr(options, name)]
        if given:
            return f"--{given[0]} is of a protocol's table: name one with --protocol, or leave it out."
        return f"'--quantizers' must be of {', '.join(known)}, got {', '.join(unknown)}." if unknown else None
    if options.protocol not in leaderboard.PROTOCOLS:
        return f"'--protocol' must be one of {', '.join(leaderboard.PROTOCOLS)}, got {options.protocol!r}."
    fixed = [name for name in ("steps", "batch_size", "codebook_size", "width") if getattr(options, name) is not None]
    if options.recipes or fixed:
        named = ", ".join([*options.recipes, *(f"--{name.replace('_', '-')}" for name in fixed)])
        return f"A protocol has data, network and training of its own: leave out {named}, or --protocol."
    if len(options.data) != 1:
        return f"'--data' must be the path of the protocol's data, got {len(options.data)}. Write --data PATH."
    return None


def run_of(options: TrainOptions) -> Run:
    """The run that the options of ``train`` describe: a recipe with what was asked for in its place.

    A flag at the top counts if it is not the recipe's own value, else the nested flag for the same field does.

    Raises:
        ValueError: If the recipe needs the path of its data and there is none, or a value is out of range.
    """
    recipe = recipes.template(options.recipe)
    source = options.data if options.data is not None else options.images.source
    made = recipes.make(options.recipe, None if source == recipe.data.source else source)
    data = replace(options.images, source=made.data.source)
    if data.channels is None and options.model.channels != recipe.model.channels:
        data = replace(data, channels=options.model.channels)
    model, training = options.model, options.training
    for name in ("quantizer", "codebook_size"):
        if getattr(options, name) != getattr(recipe.model, name):
            model = replace(model, **{name: getattr(options, name)})
    for name in ("steps", "batch_size", "seed", "tensorboard"):
        if getattr(options, name) != getattr(recipe.training, name):
            training = replace(training, **{name: getattr(options, name)})
    if not options.adversarial and (options.features is not None or options.discriminator != AdversarialConfig()):
        raise ValueError("--features and --discriminator need --adversarial: add it, or leave them out.")
    adversarial = options.discriminator if options.adversarial else None
    return Run(options.recipe, data, model, training, adversarial, options.features)


def data_of(options: CompareOptions) -> dict[str, str]:
    """Path of each recipe's data.

    Raises:
        ValueError: If an entry is not of the form RECIPE=PATH with a recipe to compare.
    """
    paths: dict[str, str] = {}
    for entry in options.data:
        name, separator, path = entry.partition("=")
        if not (separator and path and name in options.recipes):
            raise ValueError(
                f"'--data' must have the form RECIPE=PATH with one of {', '.join(options.recipes)}, got {entry!r}. "
                f"Write, for example, --data {options.recipes[0]}=PATH."
            )
        paths[name] = path
    return paths


def _recipe_of(words: Sequence[str]) -> str:
    """The recipe among the words of ``train``, wherever it stands: its values are the defaults of all other flags."""
    words = [word for word in words if word not in ("-h", "--help")]
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # what is wrong is said by the parser proper
            options, _ = tyro.cli(
                TrainOptions, args=words, config=_CONFIG, default=_train_options("photos"), return_unknown_args=True
            )
    except SystemExit:
        return next((word for word in words if word in recipes.NAMES), "photos")
    return options.recipe


def _train_options(name: str) -> TrainOptions:
    recipe = recipes.template(name)
    return TrainOptions(
        recipe=tyro.MISSING,
        quantizer=recipe.model.quantizer,
        steps=recipe.training.steps,
        batch_size=recipe.training.batch_size,
        codebook_size=recipe.model.codebook_size,
        seed=recipe.training.seed,
        images=recipe.data,
        model=recipe.model,
        training=recipe.training,
    )
