"""Evaluates images drawn by every kind of prior over the codes of one tokenizer, by class.

A GM-VQ tokenizer is trained on labeled images, and on its codes each kind of prior for the same number of steps, with
transformers of the same size. A classifier trained on the real images evaluates the drawn ones of each class: does it
recognize the requested class, and how do its features of drawn images compare with those of held-out ones? These are
not FID and KID. Bits are those of a held-out code, given its class; flows have none.

    python benchmarks/drawing.py --out benchmarks/results/drawing.json --pictures docs/images/generation
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from gmvq import hub, recipes
from gmvq.commands.masks import read_mask
from gmvq.data.writing import write_json
from gmvq.generation import Generator, interpolate, swap
from gmvq.modalities import Data
from gmvq.priors import PRIORS, AbstractPrior, Sampling
from gmvq.stages import PriorRun, classifier_of, load_data
from gmvq.stages.judge import CLASSIFIER, judge
from gmvq.stages.layout import finished
from gmvq.stages.prior import PriorStage
from gmvq.stages.tiling import tiled
from gmvq.training.preparation import cpu_threads
from gmvq.training.provenance import commit, hardware, versions

ROWS = 6
"""Images of each class in a picture of samples."""
EDITED = 6
"""Held-out images in a picture of completions, interpolations or swaps."""


def fitted(folder: Path, prior: PriorRun, out: Path, data: Data) -> dict[str, Any]:
    """Returns the metrics of a prior over the tokenizer in a folder; a finished one is not trained again."""
    stage = PriorStage(folder, prior, out, data=data)
    return stage.carry_out(overwrite=finished(out, stage.settings()) is None, report=False)


def write_edits(pictures: Path, generator: Generator, data: Data, sampling: Sampling) -> None:
    """Writes completions of lower halves, interpolations and swaps of held-out images."""
    labels = data.held_out.labels
    places = list(range(EDITED)) if labels is None else [int((labels == each).int().argmax()) for each in range(EDITED)]
    chosen = data.signal.checked(torch.stack([data.held_out[place] for place in places]))
    mask = read_mask("lower", generator.size)
    rows = [chosen, torch.where(mask, 0.5, chosen)]
    rows += [generator.complete(chosen, mask, sampling=sampling, first=len(chosen) * draw).items for draw in range(4)]
    write = data.modality.write
    write(pictures / "completions.png", list(torch.stack(rows, dim=1).flatten(0, 1)), columns=len(rows))
    others = chosen.roll(-1, dims=0)
    between = interpolate(generator.tokenizer, chosen, others, 8).transpose(0, 1)
    way = torch.cat([chosen[:, None], between, others[:, None]], dim=1)
    write(pictures / "interpolations.png", list(way.flatten(0, 1)), columns=way.shape[1])
    swapped = swap(generator.tokenizer, chosen, others, mask).items
    write(pictures / "swaps.png", [*chosen, *others, *swapped], columns=EDITED)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=("digits", "fashion-mnist"), default="digits")
    parser.add_argument("--data", type=Path, help="of Fashion-MNIST")
    parser.add_argument("--priors", nargs="+", choices=PRIORS, default=list(PRIORS))
    parser.add_argument("--tokenizer-steps", type=int, help="by default the recipe's")
    parser.add_argument("--steps", type=int, default=1500, help="of each prior")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--judge-steps", type=int, default=1500)
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 1.5])
    parser.add_argument("--number", type=int, default=1000, help="images to draw")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--runs", type=Path, default=Path("runs/drawing"))
    parser.add_argument("--pictures", type=Path, help="folder of the sheets; none are written without")
    parser.add_argument("--out", type=Path, default=Path("runs/drawing.json"))
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, draws and writes the results."""
    arguments = _parser().parse_args(argv)
    run = recipes.changed(recipes.make(arguments.recipe, arguments.data), steps=arguments.tokenizer_steps)
    folder, size = arguments.runs / arguments.recipe, {"width": arguments.width, "depth": arguments.depth}
    training = replace(PriorRun().training, steps=arguments.steps)
    rows = []
    with cpu_threads(arguments.threads):
        whole = load_data(run.data)
        tokenized = recipes.run(run, folder, data=whole, resume=True, report=False)
        tokenizer = hub.load(folder)
        data = tiled(whole, run.data.size, tokenizer.downsampling)
        classifier = classifier_of(data, folder / CLASSIFIER, arguments.judge_steps)
        for name in arguments.priors:
            counts = PriorRun(name).counts
            learned = PriorRun(name) if counts else PriorRun(name, size, training)
            out = folder / f"prior-{name}"
            metrics = fitted(folder, learned, out, whole)
            generator = Generator(tokenizer, hub.load(out, AbstractPrior))
            for guidance in [1.0] if counts else arguments.guidance:
                sampling = Sampling(guidance=guidance)
                verdict = judge(generator, data, classifier, arguments.number, sampling).metrics
                bits = {key: metrics[key] for key in ("bits_per_code", "bits_per_dim")}
                rows.append({"prior": name, "guidance": guidance, **bits, **verdict})
                shown = {key: value if value is None else round(value, 4) for key, value in verdict.items()}
                print(f"{name}, guidance {guidance:g}: {bits} {shown}", flush=True)
            if arguments.pictures is not None and not counts:
                classes = generator.prior.shape.classes
                labels = torch.arange(classes).repeat(ROWS)
                drawn = generator.sample(len(labels), labels, Sampling(guidance=arguments.guidance[-1]))
                data.modality.write(arguments.pictures / f"{name}.png", list(drawn.items), columns=classes)
            if arguments.pictures is not None and name == "autoregressive":
                write_edits(arguments.pictures, generator, data, Sampling(guidance=1.0))
        where = {"versions": versions(), "hardware": hardware(), "commit": commit()}
    sentence = " ".join((__doc__ or "").split("\n\n")[1].split())
    options = {name: getattr(arguments, name) for name in ("recipe", "steps", "width", "depth", "judge_steps")}
    tokenizer_metrics = {name: tokenized[name] for name in ("psnr", "usage", "perplexity")}
    about = {"about": sentence, **options, "number": arguments.number, **where}
    write_json(arguments.out, {**about, "tokenizer": tokenizer_metrics, "rows": rows})


if __name__ == "__main__":
    main()
