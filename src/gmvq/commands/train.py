"""Train a tokenizer and write its model, metrics and report into a folder."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import tyro
from rich.console import Console

from gmvq import recipes
from gmvq.checks import one_of
from gmvq.commands.common import Common, common, flags, metric_table, say
from gmvq.modalities import MODALITIES
from gmvq.models import AdversarialConfig, AutoencoderConfig
from gmvq.quantizers import QUANTIZERS
from gmvq.stages.data import DataConfig
from gmvq.stages.tokenizer import Run
from gmvq.training import Training

RecipeName = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="{" + ",".join(recipes.RECIPES) + "}")]


@dataclass(frozen=True)
class Head:
    """Train a tokenizer and write its model, metrics and report.html into a folder.

    Args:
        recipe: Data, model and training. Some recipes come with data, the others need --data.
        data: A file or a folder of images, recordings, texts, series or tables.
        out: Folder of the run; by default runs/RECIPE.
        start: Start from the weights of this run, to train longer or to fine-tune to other data.
        resume: Continue from the last checkpoint in the run's folder.
        overwrite: Replace a finished run, or one with other settings.
        adversarial: Train against a discriminator, for sharper images.
        features: Compare features, too, and show them to the discriminator in place of pixels. Their network is a file
            with the weights of torchvision's VGG-16, the folder of a classifier of gmvq judge, or 'learned' for a small
            one that is trained on the data first.
        quantizer_options: Options of the quantizer, as a JSON object.
        fit_codec: Whether gmvq fit-codec follows training.
    """

    recipe: RecipeName
    data: Path | None = None
    out: Path | None = None
    start: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    resume: bool = False
    overwrite: bool = False
    adversarial: bool = False
    features: str | None = None
    quantizer_options: str = "{}"
    fit_codec: bool = True


def settings_type() -> type[Any]:
    """Makes a dataclass of the settings of all modalities that a flag can hold, each None by default.

    A setting of several modalities has the types of all: ``--rate`` is an integer for recordings, any number for
    series.
    """
    found: dict[str, Any] = {}
    for kind in MODALITIES.values():
        for name, hint in flags(kind, kind.learned).__annotations__.items():
            if _is_plain(hint):
                found[name] = found[name] | hint if name in found else hint
    parts = [(name, hint | None, dataclasses.field(default=None)) for name, hint in found.items()]
    made = dataclasses.make_dataclass("Settings", parts, frozen=True)
    documented = {name: _documented(name) for name in found}
    made.__doc__ = "Settings of the data.\n\nArgs:\n" + "".join(f"    {n}: {t}\n" for n, t in documented.items())
    return made


def _is_plain(hint: Any) -> bool:  # noqa: ANN401
    kinds = getattr(hint, "__args__", (hint,))
    return all(kind in (int, float, str, bool, type(None)) for kind in kinds)


def _documented(name: str) -> str:
    """Collects the descriptions of a setting from the docstrings of modalities."""
    said = []
    for kind in MODALITIES.values():
        lines = (kind.__doc__ or "").splitlines()
        for place, line in enumerate(lines):
            if line.strip().startswith(f"{name}:"):
                indent = len(line) - len(line.lstrip())
                rest = lines[place + 1 :]
                end = next((i for i, text in enumerate(rest) if len(text) - len(text.lstrip()) <= indent), len(rest))
                text = " ".join([line.strip().partition(":")[2].strip(), *(part.strip() for part in rest[:end])])
                said.append(f"Of {kind.items}: {text.strip()}")
    return " ".join(said)


def options_type() -> type[Any]:
    """Makes the options of this verb, flat: the head, settings of the data, fields of data, model and training."""
    parts: list[tuple[str, Any, Any]] = [
        (each.name, Head.__annotations__[each.name], each) for each in dataclasses.fields(Head)
    ]
    hints = get_type_hints(Head, include_extras=True)
    quantizer = Annotated[str, tyro.conf.arg(metavar="{" + ",".join(QUANTIZERS) + "}")]
    fields = [(name, hints[name], dataclasses.field(default=each.default)) for name, _, each in parts[1:]]
    nested = {
        "items": flags(DataConfig, ("source", "modality"), {"source": ""}),
        "settings": settings_type(),
        "model": flags(
            AutoencoderConfig, ("modality", "quantizer_options"), {"modality": None}, {"quantizer": quantizer}
        ),
        "training": flags(Training, ("device",), {}),
        "discriminator": _prefixed(AdversarialConfig, "discriminator_"),
    }
    made = dataclasses.make_dataclass(
        "TrainOptions",
        [
            ("recipe", hints["recipe"]),
            *nested.items(),
            *fields,
            ("common", Common, common),
        ],
        frozen=True,
    )
    made.__doc__ = Head.__doc__
    return made


def _prefixed(kind: type[Any], prefix: str) -> type[Any]:
    """Makes a dataclass whose fields have a prefix, so that their flags differ from those of other parts."""
    hints = flags(kind).__annotations__
    parts = [
        (f"{prefix}{each.name}", hints[each.name], dataclasses.field(default=each.default))
        for each in dataclasses.fields(kind)
    ]
    made = dataclasses.make_dataclass(f"{kind.__name__}Flags", parts, frozen=True)
    lines = [f"{prefix}{line.lstrip()}" if _names(line, hints) else line for line in (kind.__doc__ or "").splitlines()]
    made.__doc__ = "\n".join(" " * 8 + line if line.startswith(prefix) else line for line in lines)
    return made


def _names(line: str, hints: Mapping[str, Any]) -> bool:
    """Returns True if a line of a docstring begins the description of an argument."""
    return line.strip().partition(":")[0] in hints and len(line) - len(line.lstrip()) == 8


def defaults(words: Sequence[str]) -> Any:  # noqa: ANN401 (an instance of options_type())
    """Makes the defaults of all flags: the values of the recipe, wherever it is among the words."""
    words = [word for word in words if word not in ("-h", "--help")]
    first = _options_of("photos", None)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # what is wrong is said by the parser proper
            found, _ = tyro.cli(
                type(first),
                args=words,
                config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes),
                default=first,
                return_unknown_args=True,
            )
    except SystemExit:
        return _options_of(next((word for word in words if word in recipes.RECIPES), "photos"), None)
    return _options_of(found.recipe if found.recipe in recipes.RECIPES else "photos", found.data)


def _options_of(name: str, source: Path | None) -> Any:  # noqa: ANN401
    kind = options_type()
    recipe = template(name, source)
    parts = {"items": recipe.data, "model": recipe.model, "training": recipe.training}
    hints: dict[str, Any] = {each.name: each.type for each in dataclasses.fields(kind)}
    nested = {part: _taken(hints[part], values) for part, values in parts.items()}
    return kind(recipe=tyro.MISSING, settings=hints["settings"](), discriminator=hints["discriminator"](), **nested)


def _taken(kind: Any, values: Any) -> Any:  # noqa: ANN401
    return kind(**{each.name: getattr(values, each.name) for each in dataclasses.fields(kind)})


def template(name: str, source: Path | None = None) -> Run:
    """Makes a recipe whose values are the defaults of the flags; if it lacks its data, for images."""
    recipe = recipes.RECIPES[name]
    if recipe.wanted is None:
        return recipe.make() if source is None else recipe.make(source)
    if name == "folder":
        try:
            return recipe.make("." if source is None else source)
        except (FileNotFoundError, ValueError):
            return replace(recipes.photos(), name=name)
    return recipe.make("" if source is None else source)


def run_of(options: Any) -> Run:  # noqa: ANN401
    """Makes the run of the options: a recipe with changed values.

    Raises:
        ValueError: If the recipe needs the path of its data, or a value is out of range.
        FileNotFoundError: If the recipe looks at the data, and the path does not exist.
    """
    one_of("RECIPE", options.recipe, recipes.RECIPES)
    recipe = recipes.make(options.recipe, options.data)
    discriminator = AdversarialConfig(
        **{name.removeprefix("discriminator_"): x for name, x in dataclasses.asdict(options.discriminator).items()}
    )
    if not options.adversarial and (options.features is not None or discriminator != AdversarialConfig()):
        raise ValueError("--features and --discriminator-... need --adversarial: add it, or leave them out.")
    quantizer_options = _object("quantizer-options", options.quantizer_options)
    given = {name: value for name, value in dataclasses.asdict(options.settings).items() if value is not None}
    known = {each.name for each in dataclasses.fields(recipe.data.modality)}
    if not given.keys() <= known:
        unknown = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(given.keys() - known))
        raise ValueError(f"{unknown}: {recipe.data.modality.items} have no such setting. Leave it out.")
    modality = replace(recipe.data.modality, **given)
    quantizer_options = {**recipe.model.quantizer_options, **quantizer_options}
    return Run(
        options.recipe,
        DataConfig(recipe.data.source, modality, **dataclasses.asdict(options.items)),
        AutoencoderConfig(modality=None, quantizer_options=quantizer_options, **dataclasses.asdict(options.model)),
        Training(**dataclasses.asdict(options.training), device=options.common.device),
        discriminator if options.adversarial else None,
        options.features,
        None if options.start is None else str(options.start),
    )


def _object(name: str, text: str) -> dict[str, Any]:
    """Reads the JSON object in an option.

    Raises:
        ValueError: If it is not one.
    """
    rule = f"{name!r} must be a JSON object, as '{{\"decay\": 0.9}}', got {text[:100]!r}."
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(rule) from error
    if not isinstance(value, dict):
        raise ValueError(rule)
    return value


def run(options: Any, command: str) -> dict[str, Any]:  # noqa: ANN401
    """Trains. The result has the run's folder, its metrics and its report."""
    out = options.out if options.out is not None else Path("runs") / options.recipe
    recipe = run_of(options)
    if options.recipe == "folder":
        modality = recipe.data.modality
        others = [name for kind, name in recipes.OF_KIND.items() if kind != modality.kind]
        text = f"{options.data} is taken for {modality.items}. For another kind, name {', '.join(others[:-1])} or "
        say(Console(file=sys.stderr), f"{text}{others[-1]} in place of folder.")
    how = {"resume": options.resume, "overwrite": options.overwrite, "command": command}
    metrics = recipes.run(recipe, out, codec=options.fit_codec, **how)
    return {"run": str(out), "metrics": metrics, "report": str(out / "report.html")}


def show(result: Mapping[str, Any], console: Console) -> None:
    """Prints the metrics and the path of the report."""
    console.print(metric_table(result["metrics"]))
    say(console, f"Report: {result['report']}")
