"""The dtype in which scales are stored: the narrowest that the numbers allow."""

from __future__ import annotations

import numpy as np

from conversion.errors import BadInput
from conversion.facts import ScaleFacts

FLOAT16_NORMAL = (float(np.finfo(np.float16).smallest_normal), float(np.finfo(np.float16).max))


def choose_scale_dtype(asked: str, scales: ScaleFacts) -> str:
    """The dtype of the scales in the shards.

    Unless the user asks for one: bfloat16 if exact for every group, else float16 if exact for every group, else float16
    if every scale that is not zero is in its normal range, else float32.

    Raises:
        BadInput: float16 was asked for, and a scale is beyond its normal range and would be rounded.
    """
    smallest, largest = FLOAT16_NORMAL
    in_range = not scales.largest or (smallest <= scales.smallest and scales.largest <= largest)
    if asked == "float16" and scales.inexact["float16"] and not in_range:
        raise BadInput(
            f"--scale-dtype float16: scales reach from {scales.smallest:.3g} to {scales.largest:.3g}, float16 holds "
            f"{smallest:.3g} to {largest:.3g}; use auto"
        )
    if asked != "auto":
        return asked
    for dtype in ("bfloat16", "float16"):
        if not scales.inexact[dtype]:
            return dtype
    return "float16" if in_range else "float32"


def exact_dtype(scales: ScaleFacts) -> str:
    """The narrowest dtype that holds every scale exactly."""
    return next(dtype for dtype in ("bfloat16", "float16", "float32") if not scales.inexact[dtype])
