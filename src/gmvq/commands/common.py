"""Parts of several verbs: options, models on the fastest device, items by path or number, and the output of results."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

from gmvq import checks, hub, tokenization
from gmvq.data import Items
from gmvq.data.labels import printable
from gmvq.generation import Generator
from gmvq.modalities import MODALITIES, Data, Modality
from gmvq.models import Autoencoder, DiffusionDecoder
from gmvq.priors import AbstractPrior, MaskedPrior, Sampling
from gmvq.priors.flow import AbstractFlowPrior
from gmvq.stages.data import data_of_run
from gmvq.stages.layout import RECORD
from gmvq.stages.prior import PRIOR
from gmvq.stages.tiling import tiled
from gmvq.stages.tokenizer import read_run

RunFolder = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
Input = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="IN", name="in")]
Output = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
Number = Annotated[int, tyro.conf.arg(aliases=["-n"])]
FILES_SHOWN = 20


@dataclass(frozen=True)
class Common:
    """Options of all verbs.

    Args:
        json: Print the result as one JSON object on standard output.
        device: Device for the computation: cpu, cuda, cuda:1 or mps; by default the fastest one.
    """

    json: bool = False
    device: str | None = None


@dataclass(frozen=True)
class Drawing:
    """Options of drawing codes.

    Args:
        guidance: Weight of the class: 0 ignores it, 1 is as learned, more exaggerates it.
        temperature: Below 1 likely codes become likelier; 0 takes the likeliest.
        top_k: Draw from this many of the likeliest codes.
        top_p: Draw from the likeliest codes with this probability in total.
        draw_steps: Steps of a masked prior or a flow; by default as in its configuration.
        seed: Seed of all draws.
    """

    guidance: float = 1.0
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    draw_steps: int | None = None
    seed: int = 0

    def sampling(self, generator: Generator) -> Sampling:
        """Converts the options for a prior.

        Raises:
            ValueError: If an option is out of range, or not defined for the prior.
        """
        if self.draw_steps is not None and not isinstance(generator.prior, (MaskedPrior, AbstractFlowPrior)):
            raise ValueError("'draw_steps' must be left out for a prior that draws codes one by one. Leave it out.")
        return Sampling(self.temperature, self.top_k, self.top_p, self.guidance, self.seed, self.draw_steps)


@dataclass(frozen=True)
class Drawer:
    """Options for the parts that draw.

    Args:
        prior: Folder of the prior; by default RUN/prior.
        decoder: Folder of a diffusion decoder, as RUN/decoder; by default the tokenizer's decoder is used.
    """

    prior: Path | None = None
    decoder: Path | None = None

    def folder(self, run: Path) -> Path:
        """Returns the folder of the prior."""
        return run / PRIOR if self.prior is None else self.prior

    def generator(self, run: Path, device: torch.device) -> Generator:
        """Loads tokenizer and prior of a run.

        Raises:
            ValueError: If the prior or the decoder belongs to another tokenizer.
        """
        folder, tokenizer = self.folder(run), load_model(run, device)
        _check_tokenizer(folder, AbstractPrior, tokenizer, run, "fit-prior")
        prior = hub.load(folder, AbstractPrior).to(device)
        return Generator(tokenizer, prior, load_decoder(run, self.decoder, tokenizer))


@dataclass(frozen=True)
class Where:
    """Option for the data of a run.

    Args:
        data: Path of the data that the run learned from, if they are no longer at the recorded path.
    """

    data: Path | None = None

    def load(self, run: Path) -> Data:
        """Loads the data of a run, see :func:`gmvq.stages.data.data_of_run`."""
        return data_of_run(run, read_run(run).data, self.data)


common = field(default_factory=Common)


def flags(
    kind: type[Any],
    without: Sequence[str] = (),
    given: Mapping[str, Any] | None = None,
    hints: Mapping[str, Any] | None = None,
) -> type[Any]:
    """Makes a dataclass from the fields of another, with its docstring, from which tyro makes flags.

    Args:
        kind: The dataclass.
        without: Fields without a flag.
        given: Values of those fields. With them options are checked when they are parsed, by making a ``kind``.
        hints: Types of fields that replace those of the dataclass.
    """
    types = {**get_type_hints(kind), **(hints or {})}
    parts = [
        (each.name, types[each.name], dataclasses.field(default=_default(each)))
        for each in dataclasses.fields(kind)
        if each.name not in without
    ]
    check = {} if given is None else {"__post_init__": lambda self: kind(**given, **self.__dict__) and None}
    made = dataclasses.make_dataclass(f"{kind.__name__}Flags", parts, frozen=True, namespace=check)
    made.__doc__ = kind.__doc__
    return made


def _default(each: dataclasses.Field[Any]) -> Any:  # noqa: ANN401
    if each.default is not dataclasses.MISSING:
        return each.default
    return None if each.default_factory is dataclasses.MISSING else each.default_factory()


def device_of(named: str | None) -> torch.device:
    """Looks up a device by its name; by default the fastest one.

    Raises:
        ValueError: If this machine has no device of that name.
    """
    return checks.device("device", named)


def read_model(folder: Path) -> Autoencoder:
    """Loads the model of a run, on the CPU.

    Raises:
        FileNotFoundError: If there is no model, or its training is not finished.
    """
    if (folder / RECORD).is_file() and not (folder / hub.CONFIG).is_file():
        raise FileNotFoundError(
            f"The training of {folder} is not finished. Go on with 'gmvq train', its options and --resume."
        )
    return hub.load(folder)


def load_model(folder: Path, device: torch.device) -> Autoencoder:
    """Loads the model of a run on a device."""
    return read_model(folder).to(device)


def load_decoder(run: Path, folder: Path | None, model: Autoencoder) -> DiffusionDecoder | None:
    """Loads a diffusion decoder on the device of the model; None for None.

    Raises:
        ValueError: If the decoder belongs to another tokenizer.
    """
    if folder is None:
        return None
    _check_tokenizer(folder, DiffusionDecoder, model, run, "fit-decoder")
    return hub.load(folder, DiffusionDecoder).to(model.device)


def _check_tokenizer(folder: Path, part: type[torch.nn.Module], model: Autoencoder, run: Path, verb: str) -> None:
    named, mark = hub.tokenizer_of(folder, part), hub.fingerprint(model)
    if named != mark:
        raise ValueError(
            f"{folder} was fitted to the tokenizer {named[:12]!r}, {run} is {mark[:12]}. Fit one with "
            f"'gmvq {verb} {run}'."
        )


def foreign_data(source: Path, modality: Modality, part: str = "all") -> Data:
    """Loads data by a model's modality, of any number; they are split only if one side is asked for."""
    if part == "all":
        return modality.load(source, held_out_fraction=0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*holds one ")  # said for training, where one item is too few
        return modality.load(source)


def part_of(data: Data, part: str) -> Items:
    """Returns one side of the data's split, or both."""
    if part == "all":
        return tokenization.join(data)
    return data.train if part == "train" else data.held_out


def read_inputs(sources: Sequence[Path], run: Path, model: Autoencoder, where: Where) -> list[Tensor]:
    """Reads items as batches of one on the model's device.

    Args:
        sources: Files, or numbers of held-out items of the run, counted from 0; large items are cut as for a prior.
        run: The folder of the tokenizer's run.
        model: The tokenizer.
        where: Option for the data of the run.

    Raises:
        ValueError: If a number is that of no held-out item.
        OSError: If an item, or the run's data, cannot be read.
    """
    numbered = [not source.exists() and str(source).isdecimal() for source in sources]
    held_out: Items | None = None
    if any(numbered):
        held_out = tiled(where.load(run), read_run(run).data.size, model.downsampling).held_out
    found = []
    for source, is_number in zip(sources, numbered, strict=True):
        items = held_out if is_number and held_out is not None else foreign_data(source, model.modality).train
        place = int(str(source)) if is_number else 0
        if place >= len(items):
            raise ValueError(
                f"There are {len(items)} held-out {model.modality.items}, got the number {source}. Use 0, or a file."
            )
        found.append(model.signal.checked(items[place][None].to(model.device)))
    return found


def write_drawn(modality: Modality, out: Path, items: Sequence[Tensor], columns: int, folder_name: str) -> list[Path]:
    """Writes drawn items to one file if it can hold them, else each to a file of its own.

    Args:
        modality: The modality of the items.
        out: The file, or a folder.
        items: Items as a model returns them.
        columns: Items in a row of a sheet.
        folder_name: Name of the one file if ``out`` is a folder.

    Raises:
        ValueError: If one file cannot hold them.
    """
    if modality.holds_several or len(items) == 1:
        file = tokenization.file_of_all(out, f"{folder_name}{modality.suffix}")
        modality.write(file, items, columns=columns)
        return [file]
    if out.suffix:
        raise ValueError(
            f"'out' must be a folder, since a file holds one {modality.item}, got {out}. Use {out.with_suffix('')}."
        )
    files = [out / f"{index:05d}{modality.suffix}" for index in range(len(items))]
    for file, item in zip(files, items, strict=True):
        modality.write(file, [item])
    return files


def drawn_place(modality: Modality, folder: Path, name: str) -> Path:
    """Returns the default path of drawn items: a file in a folder if it can hold them, else a folder there."""
    return folder / (f"{name}{modality.suffix}" if modality.holds_several else name)


def say(console: Console, text: str) -> None:
    """Prints a line unchanged: names of files are not markup, and a path with a line break cannot be copied."""
    console.print(printable(text), markup=False, highlight=False, soft_wrap=True)


def say_files(console: Console, lines: Sequence[str]) -> None:
    """Prints the first lines, and the number of the others."""
    for line in lines[:FILES_SHOWN]:
        say(console, line)
    if len(lines) > FILES_SHOWN:
        say(console, f"... and {len(lines) - FILES_SHOWN} more")


def grid(rows: Sequence[tuple[str, str]]) -> Table:
    """Makes a table of names and values."""
    table = Table.grid(padding=(0, 2))
    for name, value in rows:
        table.add_row(printable(name), printable(value))
    return table


def metric_rows(metrics: Mapping[str, Any], shown: Sequence[tuple[str, str, str]]) -> list[tuple[str, str]]:
    """Makes rows of the known metrics from triples of key, name and format."""
    return [(name, form.format(metrics[key])) for key, name, form in shown if metrics.get(key) is not None]


_METRICS = (
    ("usage", "codes in use", "{:.1%}"),
    ("perplexity", "perplexity", "{:.1f}"),
    ("bits_per_token", "bits per token", "{:.2f}"),
    ("bits_per_second", "bits per second of the codes", "{:.4g}"),
    ("elbo_bits_per_dim", "ELBO", "{:.3f} bits/dim"),
    ("iwae_bits_per_dim", "importance-weighted bound", "{:.3f} bits/dim"),
    ("albo_bits_per_dim", "ALBO", "{:.3f} bits/dim"),
    ("posterior_entropy", "posterior entropy", "{:.3f} nats/token"),
    ("mutual_information", "mutual information", "{:.3f} nats/token"),
    ("items", "items measured", "{:,}"),
    ("seconds", "training", "{:.1f} s"),
)


def metric_table(metrics: Mapping[str, Any]) -> Table:
    """Makes the table of a tokenizer's metrics, those of the modality first."""
    modality = MODALITIES[metrics["modality"]]
    own = [
        (measure.name, f"{measure.shown(metrics[measure.key])} {measure.unit}".rstrip())
        for measure in modality.measures
        if metrics.get(measure.key) is not None
    ]
    rate = (f"bits_per_{modality.sample}", f"bits per {modality.sample} of the codes", "{:.4f}")
    return grid([*own, *metric_rows(metrics, (*_METRICS[:3], rate, *_METRICS[3:]))])
