"""Measure time and memory beside other libraries on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tyro
from rich.console import Console

from gmvq.commands.common import Common, common, say
from gmvq.experiments import speed
from gmvq.experiments.speed import Shape

Section = Literal["nearest", "vector-step", "mixture-step", "k-means", "memory", "growth"]
Shapes = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NxLxK ...")]
Peer = Literal["product", "cdist", "vector-quantize-pytorch", "faiss", "naive"]


@dataclass(frozen=True)
class Options:
    """Time gmvq's kernels and training steps beside other libraries on this machine, and measure their memory.

    Libraries that are not installed are left out; faiss-cpu and vector-quantize-pytorch come with the extra "bench".
    Results are written after each row, so that Ctrl-C keeps them.

    Args:
        shapes: Latents x features x codes of the tables of times.
        only: Sections to measure.
        against: Other implementations to measure.
        rounds: Interleaved rounds; times are medians over them.
        threads: CPU threads of all implementations; by default PyTorch's choice.
        memory_shapes: Shapes at which peak memory is measured, each call in a process of its own.
        growth_shapes: Shapes for time and memory against the number of codes.
        out: Folder of bench.json, bench.md and bench.png, which are overwritten.
    """

    shapes: Shapes = tuple(map(str, speed.SHAPES))
    only: tuple[Section, ...] = get_args(Section)
    against: tuple[Peer, ...] = get_args(Peer)
    rounds: int = 7
    threads: int | None = None
    memory_shapes: Shapes = tuple(map(str, speed.MEMORY_SHAPES))
    growth_shapes: Shapes = tuple(map(str, speed.GROWTH_SHAPES))
    out: Path = Path("runs/bench")
    common: Common = common


def run(options: Options, command: str) -> dict[str, Any]:
    """Measures. The result has the protocol and the rows of each section."""
    shapes, memory_shapes, growth_shapes = (
        [Shape.parse(text) for text in texts]
        for texts in (options.shapes, options.memory_shapes, options.growth_shapes)
    )
    return speed.bench(
        shapes,
        sections=options.only,
        against=options.against,
        rounds=options.rounds,
        threads=options.threads,
        memory_shapes=memory_shapes,
        growth_shapes=growth_shapes,
        out=options.out,
        command=command,
    )


def show(result: Mapping[str, Any], console: Console) -> None:
    """Prints a table per section, and the path of all results."""
    for table in speed.tables(result):
        console.print(table)
    say(console, speed.footnote(result["protocol"]))
    pictures = [result["plot"]] if result["plot"] else []
    say(console, f"All figures: {', '.join([result['markdown'], result['json'], *pictures])}")
