# Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
"""Operators for compiled graphs, which call by name what torch.compile must not look into.

What this file offers:
    operator     makes a function one
    NAMESPACE    a name that no other copy of this code has
"""

import hashlib
from collections.abc import Callable

import torch
from torch.library import CustomOpDef

# With a hash of the module's name, because transformers imports this file once for each revision of each repo, and a
# name can be taken only once.
NAMESPACE = f"gemma3_int4_{hashlib.sha256(__name__.encode()).hexdigest()[:16]}"


def operator(name: str, function: Callable, fake: Callable) -> CustomOpDef:
    """A function of tensors that changes none of them, as an operator.

    Args:
        name: unique in this project.
        function: with type hints on every parameter.
        fake: gives an empty tensor of the shape and dtype that `function` returns.
    """
    made = torch.library.custom_op(f"{NAMESPACE}::{name}", function, mutates_args=())
    made.register_fake(fake)
    return made
