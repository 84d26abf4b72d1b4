"""The machine's peak, as measured: the denominator of MFU."""

from __future__ import annotations

import time

import torch


def peak_flops(device: torch.device, size: int | None = None, repeats: int = 5) -> float:
    """FLOPs a second of the best of a few square matrix products, in the dtype that training uses on this device.

    Args:
        device: CPU (fp32, with the threads this process has) or CUDA (bf16).
        size: side of the matrices; by default large enough to saturate the device.
        repeats: measurements; the best counts.

    >>> peak_flops(torch.device("cpu"), size=64) > 0
    True
    """
    on_cuda = device.type == "cuda"
    size = size or (8192 if on_cuda else 1024)
    matrix = torch.ones(size, size, device=device, dtype=torch.bfloat16 if on_cuda else torch.float32)
    best = float("inf")
    for _ in range(repeats + 1):  # the first one warms up
        started = time.perf_counter()
        matrix @ matrix
        if on_cuda:
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best
