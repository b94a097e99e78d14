"""Whether a product is right: against float64, computed into memory filled with NaN."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from gemma3_int4.int4_codes import dequantize, row_blocks


def poisoned(call: Callable[[], torch.Tensor]) -> torch.Tensor:
    """The result of a call during which fresh memory is filled with NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)  # which is what torch ties the filling to
    try:
        return call()
    finally:
        torch.use_deterministic_algorithms(False)


def worst_errors(y: torch.Tensor, x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> tuple[float, float]:
    """||y - y64|| / ||y64||, and the largest error in bfloat16 ulp of its row's largest element."""
    squared_error = squared = 0.0
    largest, row_error = torch.zeros(2, x.shape[0], dtype=torch.float64, device=x.device)
    for block in row_blocks(codes.shape[0], max(x.shape[1], x.shape[0])):
        exact = x.double() @ dequantize(codes[block], scales[block], torch.float32).double().T
        error = (y[:, block].double() - exact).abs()
        squared_error += error.square().sum().item()
        squared += exact.square().sum().item()
        largest = torch.maximum(largest, exact.abs().amax(dim=1))
        row_error = torch.maximum(row_error, error.amax(dim=1))
    ulp = torch.exp2(largest.log2().floor() - 7)
    return math.sqrt(squared_error / squared), (row_error / ulp).max().item()


def checked(call: Callable, x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, name: str) -> float:
    """The relative error of a product.

    Raises:
        RuntimeError: it, or a single element, is too far from float64 (or NaN).
    """
    y = torch.cat(poisoned(lambda: call(x)), dim=1)
    relative, ulp = worst_errors(y, x, codes, scales)
    if not (relative < 1e-2 and ulp <= 2):
        raise RuntimeError(
            f"{name} is wrong at {tuple(codes.shape)} codes, {x.shape[0]} rows: relative error {relative:.2e} "
            f"(allowed 1e-2), worst element {ulp:.1f} ulp of its row's largest (allowed 2)."
        )
    return relative
