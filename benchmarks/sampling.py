"""Measures how fast an autoregressive prior draws codes: with its cache, without it, and against GPT-2.

All draw the same number of codes of a codebook of 1,024 for the same number of images, by transformers of the same
width, depth and heads with random weights, in float32. Without the cache the whole sequence is computed for each code.
transformers' GPT-2 draws with `generate` and its own cache. They take turns; values are medians over rounds, in codes
of all images per second.

    python benchmarks/sampling.py --out benchmarks/results/sampling.json
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gmvq.data.writing import write_json
from gmvq.experiments.speed.clock import interleaved, ratio
from gmvq.priors import AutoregressiveConfig, AutoregressivePrior, CodeShape, Sampling
from gmvq.priors.sampling import inverted
from gmvq.training.preparation import cpu_threads
from gmvq.training.provenance import commit, hardware, versions

CODES = 1024
PEER = "transformers GPT-2"


@torch.inference_mode()
def recomputed(prior: AutoregressivePrior, batch: int) -> Tensor:
    """Draws without a cache: each code from the whole sequence so far."""
    vectors, first = prior.place_vectors(), prior.first_input(batch, None)
    uniforms = Sampling().uniforms(0, batch, prior.shape.length, prior.device)
    inputs, drawn = (first + vectors[0])[:, None], []
    for step in range(prior.shape.length):
        hidden = prior.transformer(inputs)[:, -1]
        codes = inverted(prior.heads[0](hidden).softmax(-1), uniforms[:, step])
        drawn.append(codes)
        if step + 1 < prior.shape.length:
            following = prior.summed(codes[:, None]) + vectors[step + 1]
            inputs = torch.cat([inputs, following[:, None]], dim=1)
    return prior.codes_of(torch.stack(drawn, dim=1))


def peer(batch: int, places: int, config: AutoregressiveConfig) -> Callable[[], Any] | None:
    """Prepares GPT-2 of the same size, or returns None if transformers is not installed."""
    try:
        from transformers import GPT2Config, GPT2LMHeadModel
    except ImportError:
        return None
    size = {"n_positions": places + 1, "n_embd": config.width, "n_layer": config.depth, "n_head": config.heads}
    made = GPT2Config(vocab_size=CODES, bos_token_id=0, eos_token_id=None, pad_token_id=0, **size)
    model = GPT2LMHeadModel(made).eval()
    start = torch.zeros(batch, 1, dtype=torch.int64)
    options = {"do_sample": True, "max_new_tokens": places, "min_new_tokens": places, "top_k": 0}
    return lambda: model.generate(start, attention_mask=torch.ones_like(start), **options)


def measured(batch: int, side: int, config: AutoregressiveConfig, rounds: int) -> dict[str, Any]:
    """Measures codes per second of each, and ratios."""
    torch.manual_seed(0)
    prior = AutoregressivePrior(CodeShape((side, side), (CODES,)), config).eval()

    @torch.inference_mode()
    def cached() -> Tensor:
        return prior.sample(batch)

    calls: dict[str, Callable[[], Any]] = {"cached": cached, "recomputed": lambda: recomputed(prior, batch)}
    other = peer(batch, side * side, config)
    if other is not None:
        calls[PEER] = other
    assert torch.equal(cached(), recomputed(prior, batch))  # the same uniform numbers, the same codes
    for call in calls.values():
        call()
    times = interleaved(calls, rounds)
    number = batch * side * side
    return {
        "batch": batch,
        "codes": side * side,
        "parameters": sum(parameter.numel() for parameter in prior.parameters()),
        "codes_per_second": {name: number / statistics.median(seconds) for name, seconds in times.items()},
        "cached_over": {name: ratio(seconds, times["cached"]) for name, seconds in times.items() if name != "cached"},
        "seconds": times,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--side", type=int, default=16, help="side of the grid of codes")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, default=Path("runs/sampling.json"))
    arguments = parser.parse_args(argv)
    config = AutoregressiveConfig(arguments.width, arguments.depth, heads=arguments.heads)
    rows = []
    with cpu_threads(arguments.threads):
        for batch in arguments.batch:
            rows.append(measured(batch, arguments.side, config, arguments.rounds))
            speeds = {name: round(speed) for name, speed in rows[-1]["codes_per_second"].items()}
            over = {name: round(value, 2) for name, value in rows[-1]["cached_over"].items()}
            print(f"batch {batch}: codes a second {speeds}, with the cache against the others {over}", flush=True)
        where = {"versions": versions(), "hardware": hardware(), "commit": commit()}
    sentence = " ".join((__doc__ or "").split("\n\n")[1].split())
    size = {name: getattr(arguments, name) for name in ("width", "depth", "heads", "rounds")}
    write_json(arguments.out, {"protocol": sentence, **size, **where, "rows": rows})


if __name__ == "__main__":
    main()
