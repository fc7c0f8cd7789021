"""What this machine can do at most: matrix products in GFLOP/s, and copying memory in GB/s.

Other benchmarks hold their rates against these. Products are of one large square matrix with weights that are known
beforehand, as an encoder's are; the best of MKL through PyTorch, oneDNN and OpenVINO counts.

    python benchmarks/limits.py
    python benchmarks/limits.py --size 4096 --threads 1
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import Measured, Result, finish, parser, side_by_side
from torch.nn import functional as F

from mfhca_cache.extraction.encoder import exact_float32
from mfhca_cache.extraction.runtimes import is_installed

NO_GPU = "no GPU here"
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
#: Large enough that nothing else than the product counts: 17 GFLOP.
SIZE = 2048


def matmul_ways(precision: str, size: int = SIZE, threads: int | None = None) -> dict[str, Callable[[], Any]]:
    """Name → one product of two (size, size) matrices on the CPU: 2·size³ FLOP."""
    dtype = _DTYPES[precision]
    x, weight = (torch.randn(size, size).to(dtype) for _ in range(2))
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, size)
    # In bf16, PyTorch's own linear layer goes to oneDNN.
    ways: dict[str, Callable[[], Any]] = (
        {"MKL through PyTorch": partial(F.linear, x, weight)} if precision == "fp32" else {}
    )
    ways["oneDNN"] = lambda: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
    if is_installed("openvino"):
        ways["OpenVINO"] = _openvino(precision, size, threads)
    return ways


def cuda_way(precision: str, size: int = 8192) -> dict[str, Callable[[], Any]]:
    """Name → starts one product of two (size, size) matrices on the GPU; without TF32 under `exact_float32`."""
    x, weight = (torch.randn(size, size, device="cuda", dtype=_DTYPES[precision]) for _ in range(2))
    return {"cuBLAS": partial(F.linear, x, weight)}


def _openvino(precision: str, size: int, threads: int | None) -> Callable[[], Any]:
    openvino: Any = importlib.import_module("openvino")
    ops: Any = importlib.import_module("openvino.opset13")
    given = ops.parameter([size, size], np.float32)
    weight = np.random.default_rng(0).standard_normal((size, size), dtype=np.float32)
    model = openvino.Model([ops.matmul(given, ops.constant(weight), False, True)], [given])
    hints = {"INFERENCE_PRECISION_HINT": {"fp32": "f32"}.get(precision, precision)}
    hints |= {"INFERENCE_NUM_THREADS": str(threads or torch.get_num_threads())}
    request = openvino.Core().compile_model(model, "CPU", hints).create_infer_request()
    request.set_input_tensor(openvino.Tensor(np.ones((size, size), dtype=np.float32)))
    return request.infer


def has_bf16() -> bool:
    """Whether the processor multiplies in bf16: without that it is only emulated."""
    info = Path("/proc/cpuinfo")
    return info.exists() and any(flag in info.read_text() for flag in ("avx512_bf16", "amx_bf16"))


def best_gflops(precision: str = "fp32", size: int = SIZE, rounds: int = 5) -> float:
    """GFLOP/s of the best way on the CPU: the best round counts, as a limit is what was reached once.

    Args:
        precision: ``fp32`` or ``bf16``.
        size: of the square matrices.
        rounds: of all ways in turn.
    """
    with torch.inference_mode():
        found = side_by_side(matmul_ways(precision, size), 2 * size**3 / 1e9, rounds)
    return max(max(rates) for rates in found.values())


def cuda_gflops(precision: str = "fp32", size: int = 8192, rounds: int = 10) -> float:
    """GFLOP/s of one large product on the GPU, without TF32."""
    with torch.inference_mode(), exact_float32():
        return max(_cuda_rates(cuda_way(precision, size)["cuBLAS"], 2 * size**3 / 1e9, rounds))


def copy_gbs(mib: int = 256, rounds: int = 5) -> float:
    """GB/s of copying memory on the CPU, read and written bytes counted."""
    return max(side_by_side({"copy": _copy(mib, "cpu")}, 2 * mib * 2**20 / 1e9, rounds)["copy"])


def cuda_copy_gbs(mib: int = 1024, rounds: int = 10) -> float:
    """GB/s of copying the GPU's own memory, read and written bytes counted."""
    return max(_cuda_rates(_copy(mib, "cuda"), 2 * mib * 2**20 / 1e9, rounds))


def _copy(mib: int, device: str) -> Callable[[], Any]:
    source = torch.ones(mib * 2**18, device=device)
    return partial(torch.empty_like(source).copy_, source)


def _cuda_rates(call: Callable[[], Any], work: float, rounds: int) -> list[float]:
    rates = []
    for number in range(rounds + 2):
        torch.cuda.synchronize()
        before = time.perf_counter()
        call()
        torch.cuda.synchronize()
        if number >= 2:
            rates.append(work / (time.perf_counter() - before))
    return rates


def _product_table(precision: str, size: int, rounds: int) -> Result:
    with torch.inference_mode():
        found = side_by_side(matmul_ways(precision, size), 2 * size**3 / 1e9, rounds)
    ways = tuple(Measured(name, rates) for name, rates in found.items())
    title = f"One product of {size} × {size} matrices in {precision}, {torch.get_num_threads()} threads"
    return Result(title, "GFLOP/s", ways)


def _cuda_tables(rounds: int) -> list[Result]:
    here = torch.cuda.is_available()
    products, copies = [], []
    for precision in ("fp32", "fp16", "bf16"):
        rates = (cuda_gflops(precision, rounds=rounds),) if here else ()
        products.append(Measured(f"CUDA, {precision}", rates, note="" if here else NO_GPU))
    copies.append(Measured("CUDA", (cuda_copy_gbs(rounds=rounds),) if here else (), note="" if here else NO_GPU))
    return [
        Result("One product of 8192 × 8192 matrices on the GPU", "GFLOP/s", tuple(products)),
        Result("Copying 1 GiB of the GPU's memory", "GB/s", tuple(copies)),
    ]


def main() -> None:
    """Measure, print and perhaps write the limits."""
    options_parser = parser(__doc__ or "")
    options_parser.add_argument("--size", type=int, default=SIZE, help=f"of the square matrices (default {SIZE})")
    options_parser.add_argument("--threads", type=int, help="of the processor (default: all)")
    options_parser.add_argument("--copy-mib", type=int, default=256, help="MiB copied (default 256)")
    options = options_parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    results = [_product_table("fp32", options.size, options.rounds)]
    if has_bf16():
        results.append(_product_table("bf16", options.size, options.rounds))
    else:
        nothing = Measured("bf16", (), note="this processor has no bf16 products")
        results.append(Result("Products in bf16", "GFLOP/s", (nothing,)))
    rates = side_by_side({"copy": _copy(options.copy_mib, "cpu")}, 2 * options.copy_mib * 2**20 / 1e9, options.rounds)
    copied = (Measured("PyTorch's copy_", rates["copy"]),)
    results.append(Result(f"Copying {options.copy_mib} MiB, bytes read and written", "GB/s", copied))
    finish([*results, *_cuda_tables(options.rounds)], options.json)


if __name__ == "__main__":
    main()
