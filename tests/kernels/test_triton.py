import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton")

from gmvq.kernels import triton_mixture_gradients, triton_mixture_kernels, triton_nearest  # noqa: E402

CASES = Path(__file__).with_name("triton_cases.py")
POINTERS = {
    **dict.fromkeys(("codes", "priced", "drawn", "seed", "found", "order", "bounds"), "*i64"),
    **dict.fromkeys(("z", "m", "v", "g", "scaled", "relaxation"), "operand"),
}
NUMBERS = {"first", "count", "size", "N", "K", "V", "padded_rows", "padded_codes", "features", "first_row", "last"}


@pytest.mark.parametrize("interpreted", [True, False], ids=["interpreter", "gpu"])
def test_kernels_agree_with_the_reference(interpreted):
    if not interpreted and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    # the interpreter is chosen before Triton is imported, and stays: a process of its own. NumPy warns of NaN.
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "COV_", "TRITON"))}
    finished = subprocess.run(
        [*command, "-W", "ignore::RuntimeWarning", str(CASES)],
        env=environment | ({"TRITON_INTERPRET": "1"} if interpreted else {}),
        capture_output=True,
        text=True,
        cwd=CASES.parents[2],
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert " passed" in finished.stdout


def machine_code(kernel, operand, constants):
    """Compiles for an H100 or H200, which needs none; gives the intermediate language."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = {}
    for parameter in kernel.params:
        name, kind = parameter.name, POINTERS.get(parameter.name, "*fp32")
        if kernel is triton_nearest._nearest_kernel and name in ("latents", "codes"):
            kind = "operand"
        if name in constants:
            signature[name] = "constexpr"
        elif name in NUMBERS:
            signature[name] = "i32"
        else:
            signature[name] = "fp32" if name == "floor" else kind.replace("operand", f"*{operand}")
    source = ASTSource(kernel, signature=signature, constexprs=constants)
    options = {"num_warps": 4, "num_stages": 2, "enable_fp_fusion": True}
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]


@pytest.mark.skipif("nvidia" not in triton.backends.backends, reason="needs Triton's compiler for NVIDIA")
@pytest.mark.parametrize(
    ("kernel", "flags"),
    [
        (triton_mixture_kernels.forward_kernel, {"PADDED_V": 32, "FLOORED": True, "SAMPLED": True, "ROUNDED_BITS": 16}),
        (triton_mixture_kernels.posterior_kernel, {"SAMPLED": True}),
        (triton_mixture_gradients.row_kernel, {"PADDED_V": 32, "SAMPLED": True}),
        (
            triton_mixture_gradients.pair_kernel,
            {"PADDED_V": 32, "FLOORED": True, "SAMPLED": True, "VALUES": True, "COLUMNS": True, "ROUNDED_BITS": 16},
        ),
        (triton_nearest._nearest_kernel, {"WIDTH": 32}),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
@pytest.mark.parametrize("exact", [False, True])
def test_kernels_compile_and_use_the_matrix_units(kernel, flags, exact, tmp_path, monkeypatch):
    # the interpreter takes programs that the compiler refuses
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    flags = flags | {"EXACT": exact} if kernel is triton_nearest._nearest_kernel else flags | {"FUSED": not exact}
    flags = {**flags, "ROUNDED_BITS": 0} if exact and "ROUNDED_BITS" in flags else flags
    constants = {"L": 32, "PRECISION": "ieee", "BN": 64, "BK": 64, **flags}
    code = machine_code(kernel, "fp32" if exact else "bf16", constants)
    assert ("wgmma" in code) is not exact
