"""Train several quantizers on the same data and compare them over seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from gmvq import experiments, recipes
from gmvq.commands.common import Common, common, say
from gmvq.experiments import PROTOCOLS, Table
from gmvq.experiments.printing import footnote, summary, tables
from gmvq.experiments.running import MARKDOWN, QUANTIZERS, TABLE
from gmvq.quantizers import catalogue


@dataclass(frozen=True)
class Options:
    """Train several quantizers on the same data with the same network, steps and seeds, and compare them.

    With --protocol, rows are added to the table of a frozen protocol instead. Finished runs are not trained again:
    after an interruption, repeat the command.

    Args:
        recipes: One or more recipes of gmvq train, as photos or sentences.
        quantizers: Quantizers to compare. Under a protocol: contenders, all, study:NAME, studies or grid.
        seeds: Number of runs of each quantizer, with the seeds 0, 1, ...
        data: Path of a recipe's data, repeated for each recipe that needs it, as --data cifar10=PATH; under a protocol
            --data PATH.
        out: Folder of the runs and the table.
        steps: Optimizer steps; by default each recipe's own.
        batch_size: Items in a batch; by default each recipe's own.
        codebook_size: Number of codes; by default each recipe's own.
        width: Channels of the networks; by default each recipe's own.
        threads: CPU threads; by default PyTorch's choice.
        protocol: Name of a frozen protocol, which fixes data, network and training.
        table: The JSON file that a protocol's rows are added to; by default OUT/PROTOCOL.json.
        jobs: Runs at a time under a protocol; by default one for each CPU core, or 8 on a GPU.
        again: Under a protocol, repeat runs that are in the table.
        compile: Under a protocol, compile each model by torch.compile first: a minute, and fewer kernels on a GPU.
    """

    recipes: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE ...")] = ()
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
    common: Common = common

    def __post_init__(self) -> None:
        """Checks the options against each other.

        Raises:
            ValueError: If options of recipes and of a protocol are mixed, or both are missing.
        """
        if problem := _problem(self):
            raise ValueError(problem)


def _problem(options: Options) -> str | None:
    """Describes a contradiction among the options, which are those of recipes or of a protocol."""
    if options.protocol is None:
        if not options.recipes:
            return f"Missing from command line: one or more of {', '.join(recipes.RECIPES)}, or --protocol."
        foreign = [name for name in options.recipes if name not in recipes.RECIPES]
        if foreign:
            return f"'RECIPE' must be one of {', '.join(recipes.RECIPES)}, got {', '.join(foreign)}."
        known = tuple(catalogue.QUANTIZERS)
        unknown = [name for name in options.quantizers if name not in known]
        given = [name for name in ("table", "jobs", "again", "compile") if getattr(options, name)]
        if given:
            return f"--{given[0]} is of a protocol's table: name one with --protocol, or leave it out."
        return f"'--quantizers' must be of {', '.join(known)}, got {', '.join(unknown)}." if unknown else None
    if options.protocol not in PROTOCOLS:
        return f"'--protocol' must be one of {', '.join(PROTOCOLS)}, got {options.protocol!r}."
    fixed = [name for name in ("steps", "batch_size", "codebook_size", "width") if getattr(options, name) is not None]
    if options.recipes or fixed:
        named = ", ".join([*options.recipes, *(f"--{name.replace('_', '-')}" for name in fixed)])
        return f"A protocol has data, network and training of its own: leave out {named}, or --protocol."
    if len(options.data) != 1:
        return f"'--data' must be the path of the protocol's data, got {len(options.data)}. Write --data PATH."
    return None


def data_of(options: Options) -> dict[str, str]:
    """Returns the path of each recipe's data.

    Raises:
        ValueError: If an entry is not RECIPE=PATH with one of the recipes.
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


def run(options: Options, command: str) -> dict[str, Any]:
    """Trains and compares. The result has the protocols, their rows, means over seeds and the paths."""
    if options.protocol is not None:
        return _measure_protocol(options, options.protocol, command)
    paths = data_of(options)
    chosen = [recipes.make(name, paths.get(name)) for name in options.recipes]
    changes = {name: getattr(options, name) for name in ("steps", "batch_size", "codebook_size", "width")}
    table = experiments.compare(
        [recipes.changed(recipe, **changes) for recipe in chosen],
        quantizers=options.quantizers,
        seeds=options.seeds,
        out=options.out,
        threads=options.threads,
        command=command,
    )
    files = {"json": str(options.out / TABLE), "markdown": str(options.out / MARKDOWN)}
    return {**table.content(), "summary": summary(table), **files}


def _measure_protocol(options: Options, name: str, command: str) -> dict[str, Any]:
    """Adds rows to the table of a protocol. The result has those of the given contenders."""
    path = options.table or options.out / f"{name}.json"
    contenders = experiments.chosen(options.quantizers)
    table = experiments.measure(
        PROTOCOLS[name],
        contenders,
        options.seeds,
        options.data[0],
        table=path,
        out=options.out,
        jobs=options.jobs,
        threads=options.threads,
        again=options.again,
        compile=options.compile,
        command=command,
    )
    asked = {contender.name for contender in contenders}
    table.rows = {key: row for key, row in table.rows.items() if key.contender in asked}
    return {**table.content(), "summary": summary(table), "json": str(path)}


def show(result: Mapping[str, Any], console: Console) -> None:
    """Prints a table per recipe or of the protocol, and the path of all results."""
    table = Table.of(result)
    for one in tables(table):
        console.print(one)
    say(console, footnote(table))
    say(console, f"All metrics: {', '.join(result[kind] for kind in ('markdown', 'json') if kind in result)}")
