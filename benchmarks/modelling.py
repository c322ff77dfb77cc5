"""Measures how well a prior models the codes of different quantizers: tokenizers of one protocol, one kind of prior.

Each tokenizer is a contender of the short protocol of Fashion-MNIST: the same network, data, steps and seed, and 1,024
codes for each of 7x7 places. An autoregressive transformer, the same for all, is trained on its codes, without classes;
codes of a residual are modeled level by level. Metrics are of held-out images: bits of a token by the transformer, by
n-grams of the neighbors and by frequencies, and bits per dimension of codes and image given the codes, a bound of the
likelihood, by which tokenizers can be compared at unequal reconstruction.

    python benchmarks/modelling.py --data ../shared/data/fashion_mnist --out benchmarks/results/modelling.json
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gmvq import recipes
from gmvq.data.writing import write_json
from gmvq.experiments import CONTENDERS, PROTOCOLS
from gmvq.stages import PriorRun, load_data
from gmvq.stages.layout import finished
from gmvq.stages.prior import PriorStage
from gmvq.training.preparation import cpu_threads
from gmvq.training.provenance import commit, hardware, versions

PROTOCOL = "fashion-mnist-7x7-k1024-short"
TOKENIZERS = ("vector-ema-4", "gaussian-mixture", "finite-scalar", "residual")


def measured(name: str, data: Path, folder: Path, steps: int | None, prior: PriorRun, seed: int) -> dict[str, Any]:
    """Computes metrics of one tokenizer and of the prior over its codes; finished ones are not trained again."""
    template = PROTOCOLS[PROTOCOL].at(str(data)).run
    if steps is not None:
        template = replace(template, training=replace(template.training, steps=steps, warmup_steps=min(100, steps)))
    data_set = load_data(template.data)
    run = CONTENDERS[name].run(template, seed)
    tokenizer = recipes.run(run, folder, data=data_set, resume=True, report=False)
    stage = PriorStage(folder, prior, data=data_set)
    fitted = stage.carry_out(overwrite=finished(stage.out, stage.settings()) is None, report=False)
    levels = fitted["levels"]
    tokens = {key: levels * fitted[f"{key}_per_code"] for key in ("bits", "n_gram_bits", "frequencies_bits")}
    return {
        "tokenizer": name,
        "title": CONTENDERS[name].title,
        "seed": seed,
        **{key: tokenizer[key] for key in ("mse", "psnr", "usage", "perplexity")},
        "levels": levels,
        "bits_per_token": tokens["bits"],
        "n_gram_bits_per_token": tokens["n_gram_bits"],
        "frequencies_bits_per_token": tokens["frequencies_bits"],
        "bits_per_dim": fitted["bits_per_dim"],
        "prior_seconds": fitted["seconds"],
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tokenizers", nargs="+", choices=sorted(CONTENDERS), default=TOKENIZERS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="of each tokenizer; by default the protocol's")
    parser.add_argument("--prior-steps", type=int, default=1000)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--runs", type=Path, default=Path("runs/modelling"))
    parser.add_argument("--out", type=Path, default=Path("runs/modelling.json"))
    arguments = parser.parse_args(argv)
    size = {"width": arguments.width, "depth": arguments.depth}
    training = replace(PriorRun().training, steps=arguments.prior_steps, seed=arguments.seed)
    prior = PriorRun(options=size, training=training, classes=False)
    rows = []
    with cpu_threads(arguments.threads):
        for name in arguments.tokenizers:
            folder = arguments.runs / f"{name}-{arguments.seed}"
            rows.append(measured(name, arguments.data, folder, arguments.steps, prior, arguments.seed))
            row = rows[-1]
            print(
                f"{name}: {row['psnr']:.2f} dB, {row['bits_per_token']:.3f} bits a token (n-grams "
                f"{row['n_gram_bits_per_token']:.3f}, frequencies {row['frequencies_bits_per_token']:.3f}), "
                f"{row['bits_per_dim']:.3f} bits/dim",
                flush=True,
            )
        where = {"versions": versions(), "hardware": hardware(), "commit": commit()}
    sentence = " ".join((__doc__ or "").split("\n\n")[1].split())
    options = {"protocol": PROTOCOL, "steps": arguments.steps, "prior_steps": arguments.prior_steps, **size}
    write_json(arguments.out, {"about": sentence, **options, **where, "rows": rows})


if __name__ == "__main__":
    main()
