"""Peak performance of devices: from data sheets, or else measured by a large product and a large copy."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# {device kind of jax: (10^12 FLOP/s in bfloat16, in TF32, in float32, 10^9 bytes/s)}: dense products on one device,
# from the data sheets of NVIDIA and Google. TPUs multiply float32 as bfloat16 unless asked for more.
KNOWN = {
    "NVIDIA A100-PCIE-40GB": (312, 156, 19.5, 1555),
    "NVIDIA A100-SXM4-40GB": (312, 156, 19.5, 1555),
    "NVIDIA A100 80GB PCIe": (312, 156, 19.5, 1935),
    "NVIDIA A100-SXM4-80GB": (312, 156, 19.5, 2039),
    "NVIDIA H100 PCIe": (756, 378, 51, 2000),
    "NVIDIA H100 80GB HBM3": (989, 495, 67, 3350),
    "NVIDIA H200": (989, 495, 67, 4800),
    "TPU v4": (275, None, None, 1228),
    "TPU v5 lite": (197, None, None, 819),
    "TPU v5e": (197, None, None, 819),
    "TPU v5": (459, None, None, 2765),
    "TPU v5p": (459, None, None, 2765),
    "TPU v6 lite": (918, None, None, 1640),
    "TPU v6e": (918, None, None, 1640),
}
EXACT = ("float32", "highest", "BF16_BF16_F32_X6")  # values of jax_default_matmul_precision that rule out TF32
SECONDS = 1.0  # per measurement


@dataclasses.dataclass(frozen=True)
class Peak:
    """Peak performance of one device.

    Attributes:
      flops: FLOP/s of matrix products.
      precision: of these products: "bfloat16", "tf32" or "float32".
      bandwidth: bytes/s between its memory and its cores.
      source: "data sheet" or "measured".
    """

    flops: float
    precision: str
    bandwidth: float
    source: str


def peak_of(device: Any, compute: str) -> Peak:
    """The peak of a `jax.Device` for programs that compute in `compute`, "float32" or "bfloat16".

    For CPUs, the peak of float32 also stands for bfloat16.
    """
    precision = precision_of(device.platform, compute)
    if device.device_kind in KNOWN:
        bfloat16, tf32, float32, bandwidth = KNOWN[device.device_kind]
        flops = {"bfloat16": bfloat16, "tf32": tf32, "float32": float32}[precision]
        if flops is not None:
            return Peak(flops * 1e12, precision, bandwidth * 1e9, "data sheet")
    return Peak(measured_flops(device, precision), precision, measured_bandwidth(device), "measured")


def precision_of(platform: str, compute: str) -> str:
    """Precision of products of `compute` operands on a platform, under the current settings of jax."""
    if platform == "cpu":
        return "float32"
    exact = jax.config.values["jax_default_matmul_precision"] in EXACT
    if compute == "bfloat16" or (platform == "tpu" and not exact):
        return "bfloat16"
    return "tf32" if platform in ("gpu", "cuda") and not exact else "float32"


def measured_flops(device: Any, precision: str) -> float:
    """FLOP/s of the fastest of several products of large square matrices."""
    side = 2048 if device.platform == "cpu" else 8192
    dtype = jnp.bfloat16 if precision == "bfloat16" else jnp.float32
    matrix = jax.device_put(jnp.ones((side, side), dtype), device)
    product = jax.jit(jnp.matmul).lower(matrix, matrix).compile()
    return 2 * side**3 / fastest(lambda _: product(matrix, matrix), None)


def measured_bandwidth(device: Any) -> float:
    """Bytes/s of the fastest of several passes that read and overwrite an array far larger than caches."""
    array = jax.device_put(jnp.ones(2**25 if device.platform == "cpu" else 2**28, jnp.float32), device)
    # In place, since new memory would have to be mapped first, on a CPU page by page.
    run = jax.jit(lambda x: x + 1, donate_argnums=0).lower(array).compile()
    return 2 * array.nbytes / fastest(run, array)


def fastest(run: Callable[[Any], jax.Array], value: Any) -> float:
    """Seconds of the fastest of the calls that fit into `SECONDS`, at least two.

    Each call receives the result of the previous one.
    """
    seconds = []
    began = time.perf_counter()
    while len(seconds) < 2 or time.perf_counter() - began < SECONDS:
        start = time.perf_counter()
        value = jax.block_until_ready(run(value))
        seconds.append(time.perf_counter() - start)
    return min(seconds)
