"""What a few runs of 20 steps do, bit for bit: a change of the code around the mathematics must change none of it.

Run ``OMP_NUM_THREADS=1 python tests/golden/runs.py`` before a change and after it: it says what differs from
``runs.json``. With ``--write`` it writes that file anew, after a change that is meant to differ. Bits are those of one
kind of processor: ``machine`` says which.
"""

import hashlib
import json
import platform
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

import gmvq
from gmvq import recipes
from gmvq.priors import AbstractPrior
from gmvq.stages.data import load_data
from gmvq.stages.prior import PriorRun, fit_prior

STORED = Path(__file__).with_name("runs.json")
STEPS = 20
QUIET = Console(quiet=True)


def machine():
    """What rounding depends on."""
    cpu = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in cpu.read_text().splitlines() if line.startswith("model name")]
    return [torch.__version__, torch.backends.cpu.get_cpu_capability(), names[0] if names else platform.processor()]


def digest(state):
    """SHA-256 of a model's tensors, whatever their names and order; flags count as numbers.

    How far each quantizer's training has come is left out: some of them were held twice.
    """
    kept = [x for name, x in state.items() if not name.endswith("training_progress")]
    kept = [x.float() if x.dtype == torch.bool else x for x in kept]
    parts = sorted(f"{x.dtype} {tuple(x.shape)}".encode() + x.contiguous().numpy().tobytes() for x in kept)
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


def losses(log):
    """Loss of each step, in hexadecimal."""
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    return [float(entry["loss"]).hex() for entry in entries if "loss" in entry]


def tokenizer_run(recipe, quantizer, codebook_size, folder):
    """Losses, codes and weights of a tokenizer."""
    model = replace(recipe.model, quantizer=quantizer, codebook_size=codebook_size)
    training = replace(recipe.training, steps=STEPS, batch_size=16, log_every=1, threads=1)
    run = replace(recipe, model=model, training=training)
    recipes.run(run, folder, console=QUIET, report=False)
    held_out = load_data(run.data).held_out
    model = gmvq.load(folder)
    codes = [model.encode(held_out[index][None]) for index in range(2)]
    return {
        "losses": losses(folder / "log.jsonl"),
        "codes": hashlib.sha256(b"".join(x.contiguous().numpy().tobytes() for x in codes)).hexdigest(),
        "weights": digest(model.state_dict()),
    }


def prior_run(prior, folder):
    """Losses and weights of a prior over the codes of a tokenizer's run."""
    training = replace(PriorRun().training, steps=STEPS, batch_size=16, log_every=1, threads=1)
    options = {"width": 32, "depth": 2, "heads": 2}
    out = folder / prior
    fit_prior(folder, PriorRun(prior, options, training), out, console=QUIET, report=False)
    return {"losses": losses(out / "log.jsonl"), "weights": digest(gmvq.load(out, AbstractPrior).state_dict())}


def measure():
    """All runs, by name."""
    torch.set_num_threads(1)
    found = {"machine": machine()}
    with tempfile.TemporaryDirectory() as folder:
        for recipe in (recipes.digits(), recipes.photos()):
            for quantizer, size in (("gaussian-mixture", 64), ("vector-ema", 64), ("residual", 64)):
                name = f"{recipe.name} {quantizer}"
                found[name] = tokenizer_run(recipe, quantizer, size, Path(folder) / name)
        for quantizer in ("gaussian-mixture", "residual"):
            for prior in ("autoregressive", "masked"):
                found[f"{prior} of {quantizer}"] = prior_run(prior, Path(folder) / f"digits {quantizer}")
    return found


def main():
    """Compares, or writes."""
    found = measure()
    if "--write" in sys.argv:
        STORED.write_text(json.dumps(found, indent=1) + "\n")
        return 0
    stored = json.loads(STORED.read_text())
    wrong = [
        f"{run}: {key}"
        for run, values in stored.items()
        if isinstance(values, dict)
        for key in values
        if found[run][key] != values[key]
    ]
    if stored["machine"] != found["machine"]:
        print(f"Made on {stored['machine']}, this is {found['machine']}: bits may differ.")
    print("\n".join(wrong) if wrong else "All runs are bit for bit the same.")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
