"""Speed of the Triton kernels on this machine's GPU, relative to its bfloat16 products and to other libraries.

    python benchmarks/gpu.py --out benchmarks/results/gpu.json

Rates are in necessary floating-point operations, by medians over rounds of CUDA events, after a warm-up that also
selects the kernels' tiles. The machine's rate is the higher of torch.mm in bfloat16 at the task's own
shape and of 8192 x 8192 matrices. Nearest code counts one product of N x L x K; the GM-VQ step (relaxed sample,
posterior statistics, aggregated posterior, and backward to latents, codebook, values, biases and precisions) counts
seven: two forward, five backward, without recomputations. float32 inputs are multiplied as
set by float32_matmul_precision: "medium" in bfloat16, "high" in tf32, "highest" exactly.

Other libraries store several numbers per latent and code, so they are measured at --peer-rows latents, together with
the kernels: vector-quantize-pytorch's VectorQuantize, a step and an evaluation, and GM-VQ by plain autograd, which is
the reference that the kernels are tested against. Cases that do not fit are left out, with a note. Agreement is with
that reference in float64, on --slice latents. Memory is the peak above that before the call.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gmvq.data.writing import write_json
from gmvq.kernels import mixture_step, nearest_code, reference
from gmvq.training.provenance import commit, hardware, versions

WARM_UP = 3
PRODUCTS = 7
SQUARE = 8192
DIFFERENTIABLE = ("energy", "entropy", "log_density", "aggregated", "relaxed", "relaxed_energy")
Row = dict[str, Any]


class Shape(NamedTuple):
    """N latents of L features, K codes."""

    rows: int
    features: int
    codes: int

    @property
    def operations(self) -> int:
        """Floating-point operations of one product of all latents and codes."""
        return 2 * self.rows * self.features * self.codes


class Case(NamedTuple):
    """Inputs of a mixture step: latents ``(N, L)``, codes and values ``(K, L)``, precisions and biases ``(K,)``."""

    latents: Tensor
    codes: Tensor
    values: Tensor
    precisions: Tensor
    biases: Tensor

    def to(self, dtype: torch.dtype) -> Case:
        """Returns a copy in another precision, with gradients enabled."""
        return Case(*(part.detach().to(dtype).requires_grad_() for part in self))

    def rows(self, count: int) -> Case:
        """Returns the case with only the first latents."""
        return self._replace(latents=self.latents[:count])


def drawn(shape: Shape, device: torch.device) -> Case:
    """Draws codes of a normal distribution, and latents around some of them."""
    generator = torch.Generator(device).manual_seed(0)
    options = {"generator": generator, "device": device}
    codes = torch.randn(shape.codes, shape.features, **options)
    latents = torch.randn(shape.rows, shape.features, **options)
    places = torch.randint(shape.codes, (shape.rows,), **options)
    latents.mul_(0.7).add_(codes[places])
    scale = 2 / shape.features**0.5  # energies of codes in nats: tens, a few for the nearest codes
    biases = torch.randn(shape.codes, **options) / 4
    return Case(latents * scale, codes * scale, codes, torch.rand(shape.codes, **options) + 0.5, biases)


def milliseconds(call: Callable[[], Any], rounds: int, device: torch.device) -> float:
    """Returns the median time of a call after warm-up: from CUDA events, or in tests without a GPU from the clock."""
    for _ in range(WARM_UP):
        call()
    times = []
    for _ in range(rounds):
        if device.type == "cuda":
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize(device)
            start.record()
            call()
            stop.record()
            torch.cuda.synchronize(device)
            times.append(start.elapsed_time(stop))
        else:
            begin = time.perf_counter()
            call()
            times.append(1000 * (time.perf_counter() - begin))
    return statistics.median(times)


def peak_megabytes(call: Callable[[], Any], device: torch.device) -> float | None:
    """Returns the peak of allocated memory above that before the call."""
    if device.type != "cuda":
        return None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def measured(
    name: str, make: Callable[[], Callable[[], Any]], rounds: int, device: torch.device, **more: object
) -> Row:
    """Measures time and memory of a call, or notes that it does not fit or is not installed."""
    row: Row = {"name": name, **more}
    try:
        call = make()
        row["milliseconds"] = milliseconds(call, rounds, device)
        row["peak_megabytes"] = peak_megabytes(call, device)
    except torch.OutOfMemoryError:
        row["note"] = "does not fit into the memory of this GPU"
    except ImportError as error:
        row["note"] = f"not installed: {error.name}"
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return row


def with_rates(row: Row, operations: int, machine: float) -> Row:
    """Adds the rate in TFLOP/s and its fraction of the machine's."""
    if "milliseconds" not in row:
        return row
    rate = operations / row["milliseconds"] / 1e9
    return {**row, "teraflops": rate, "share_of_product_rate": rate / machine}


def product_rates(shape: Shape, rounds: int, device: torch.device, square: int = SQUARE) -> list[Row]:
    """Measures torch.mm in bfloat16, at the shape (in parts of 65,536 latents, into one block) and square."""

    def at_shape() -> Callable[[], Any]:
        left = torch.randn(shape.rows, shape.features, device=device, dtype=torch.bfloat16)
        right = torch.randn(shape.features, shape.codes, device=device, dtype=torch.bfloat16)
        parts = left.split(65536)
        out = left.new_empty(len(parts[0]), shape.codes)
        return lambda: [torch.mm(part, right, out=out[: len(part)]) for part in parts]

    def squares() -> Callable[[], Any]:
        left, right = (torch.randn(square, square, device=device, dtype=torch.bfloat16) for _ in range(2))
        return lambda: torch.mm(left, right)

    found = []
    for name, make, operations in (("at the shape", at_shape, shape.operations), ("square", squares, 2 * square**3)):
        row = measured(f"torch.mm in bfloat16, {name}", make, rounds, device)
        if "milliseconds" in row:
            row["teraflops"] = operations / row["milliseconds"] / 1e9
        found.append(row)
    return found


def upstream(results: Any) -> list[Tensor]:  # noqa: ANN401
    """Draws gradients of the differentiable results: the same numbers in each precision."""
    outputs = [getattr(results, name) for name in DIFFERENTIABLE]
    generator = torch.Generator(outputs[0].device).manual_seed(2)
    options = {"generator": generator, "device": outputs[0].device}
    return [torch.randn(output.shape, **options).to(output.dtype) for output in outputs]


def stepped(function: Callable[..., Any], case: Case) -> Callable[[], Any]:
    """Prepares a mixture step with its backward pass."""
    case = case.to(torch.float32)
    device = case.latents.device
    temperature, seed = torch.ones((), device=device), torch.tensor(1, device=device)
    above: list[Tensor] = []

    def call() -> Any:  # noqa: ANN401
        for part in case:
            part.grad = None
        results = function(case, temperature, seed)
        if not above:
            above.extend(upstream(results))
        torch.autograd.backward([getattr(results, name) for name in DIFFERENTIABLE], above)
        return results

    return call


def nearest_of_halves(case: Case) -> Callable[[], Tensor]:
    """Prepares the nearest code of latents and codes in bfloat16."""
    latents, codes = case.latents.bfloat16(), case.codes.bfloat16()
    return lambda: nearest_code(latents, codes)


def by_kernels(case: Case, temperature: Tensor, seed: Tensor) -> Any:  # noqa: ANN401
    """Runs the mixture step of gmvq."""
    latents, codes, values, precisions, biases = case
    return mixture_step(
        latents, codes, values, precisions=precisions, biases=biases, temperature=temperature, seed=seed
    )


def by_autograd(case: Case, temperature: Tensor, seed: Tensor) -> Any:  # noqa: ANN401
    """Runs the same in plain PyTorch, which stores several numbers per latent and code."""
    latents, codes, values, precisions, biases = case
    prices, weights = torch.zeros_like(biases), torch.ones_like(latents[:, 0])
    return reference.mixture_step(latents, codes, values, precisions, biases, prices, weights, temperature, seed)


def peer_step(case: Case, training: bool) -> Callable[[], Any]:
    """Prepares vector-quantize-pytorch's VectorQuantize: forward, and in training backward to the latents."""
    from vector_quantize_pytorch import VectorQuantize

    module = VectorQuantize(dim=case.codes.shape[1], codebook_size=len(case.codes), rotation_trick=False)
    module = module.to(case.codes.device).train(training)
    latents = case.latents.detach()[None]

    def call() -> None:
        with torch.set_grad_enabled(training):
            leaves = latents.clone().requires_grad_(training)
            values, _, loss = module(leaves)
            if training:
                torch.autograd.backward((values, loss.sum()), (torch.ones_like(values), torch.ones_like(loss.sum())))

    return call


def agreement(case: Case, precision: str) -> Row:
    """Computes equal codes and the largest relative errors (norm of the error over norm) to float64."""
    torch.set_float32_matmul_precision(precision)
    exact, own = case.to(torch.float64), case.to(torch.float32)
    device = case.latents.device
    temperature, seed = torch.ones((), device=device), torch.tensor(1, device=device)
    expected, found = by_autograd(exact, temperature.double(), seed), by_kernels(own, temperature, seed)
    for results in (expected, found):
        torch.autograd.backward([getattr(results, name) for name in DIFFERENTIABLE], upstream(results))
    pairs = {name: (getattr(found, name).detach(), getattr(expected, name).detach()) for name in DIFFERENTIABLE}
    for name, one, two in zip(case._fields, own, exact, strict=True):
        pairs[f"gradient of {name}"] = one.grad, two.grad
    errors = {name: float((one.double() - two).norm() / two.norm()) for name, (one, two) in pairs.items()}
    same = {
        name: float((getattr(found, name) == getattr(expected, name)).double().mean()) for name in ("codes", "drawn")
    }
    codes = reference.nearest_code(exact.latents.detach(), exact.codes.detach())
    same["nearest_code"] = float((nearest_code(own.latents, own.codes) == codes).double().mean())
    return {"precision": precision, "share_of_equal_codes": same, "relative_errors": errors}


def measure(shape: Shape, peer_rows: int, slice_rows: int, rounds: int, device: torch.device) -> dict[str, list[Row]]:
    """Measures the machine's products, the kernels at the shape, everything at fewer latents, and agreement."""
    products = product_rates(shape, rounds, device, SQUARE if device.type == "cuda" else 16)
    machine = max(row.get("teraflops", 0.0) for row in products)
    case = drawn(shape, device)
    few, fewer = case.rows(peer_rows), shape._replace(rows=min(peer_rows, shape.rows))
    torch.set_float32_matmul_precision("medium")
    kernels = [
        with_rates(
            measured("nearest code, bfloat16", lambda: nearest_of_halves(case), rounds, device),
            shape.operations,
            machine,
        )
    ]
    beside = []
    for precision in ("medium", "high", "highest"):
        torch.set_float32_matmul_precision(precision)
        # exact float32 does not use tensor cores: at the whole shape it would take minutes
        own, size = (few, fewer) if precision == "highest" else (case, shape)
        row = measured("GM-VQ step", lambda own=own: stepped(by_kernels, own), rounds, device, precision=precision)
        kernels.append(with_rates({**row, "rows": size.rows}, PRODUCTS * size.operations, machine))
        calls = {
            "nearest code": lambda: lambda: nearest_code(few.latents, few.codes),
            "vector-quantize-pytorch, evaluation": lambda: peer_step(few, training=False),
            "GM-VQ step": lambda: stepped(by_kernels, few),
            "GM-VQ step by plain autograd": lambda: stepped(by_autograd, few),
            "vector-quantize-pytorch, step": lambda: peer_step(few, training=True),
        }
        beside += [measured(name, make, rounds, device, precision=precision) for name, make in calls.items()]
    agreements = [agreement(case.rows(slice_rows), precision) for precision in ("medium", "high", "highest")]
    return {"products": products, "kernels": kernels, "beside": beside, "agreement": agreements}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1 << 20, help="latents N")
    parser.add_argument("--features", type=int, default=256, help="features L")
    parser.add_argument("--codes", type=int, default=16384, help="codes K")
    parser.add_argument("--peer-rows", type=int, default=1 << 16, help="latents where peers are measured")
    parser.add_argument("--slice", type=int, default=1024, help="latents of the comparison with float64")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu.json"))
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Measures, prints and writes the results; returns 2 if there is no GPU."""
    options = parse(arguments)
    if not torch.cuda.is_available():
        print(
            "benchmarks/gpu.py measures a GPU, and torch sees none: torch.cuda.is_available() is False.",
            file=sys.stderr,
        )
        return 2
    from importlib.metadata import version

    device = torch.device("cuda")
    shape = Shape(options.rows, options.features, options.codes)
    where = {
        "versions": {**versions(), "triton": version("triton"), "cuda": torch.version.cuda},
        "hardware": hardware(),
        "gpu": torch.cuda.get_device_name(device),
        "commit": commit(),
        "shape": shape._asdict(),
        "peer_rows": options.peer_rows,
        "slice_rows": options.slice,
        "rounds": options.rounds,
    }
    found = measure(shape, options.peer_rows, options.slice, options.rounds, device)
    for name, rows in found.items():
        print(name)
        for row in rows:
            print("  ", {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()})
    write_json(options.out, {"protocol": (__doc__ or "").strip(), **where, **found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
