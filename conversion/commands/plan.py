"""`convert_flax.py plan`: what a conversion would do. Also how a conversion's options are read and checked."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from conversion.arguments import source_path
from conversion.convert.plan import check_options, describe, make_plan
from conversion.errors import BadInput
from conversion.options import VARIANTS, Options


def run(chosen: argparse.Namespace) -> None:
    """Prints the plan.

    Raises:
        BadInput: the checkpoint cannot be converted so.
    """
    options = checked_options(chosen)
    options = dataclasses.replace(options, checkpoint=source_path(chosen.checkpoint, tower=not chosen.mmproj))
    print(describe(make_plan(options), options))


def checked_options(chosen: argparse.Namespace) -> Options:
    """The options as given, all checked before a checkpoint is downloaded; `checkpoint` is not looked at yet.

    Raises:
        BadInput: one of them is wrong.
    """
    given = {name: value for name, value in vars(chosen).items() if name in Options.__dataclass_fields__}
    given |= {"checkpoint": Path(chosen.checkpoint), "variant": variant_of(chosen.variant, chosen.checkpoint)}
    options = Options(**given)
    check_options(options)
    return options


def variant_of(asked: str | None, checkpoint: str) -> str | None:
    """What was asked for, or what the name of a checkpoint of Kaggle's says; None where the source itself decides."""
    named = next((v for v in VARIANTS if checkpoint.startswith("kaggle:") and f"-{v}-" in checkpoint), None)
    if asked and named and asked != named:
        raise BadInput(f"--variant {asked}: {checkpoint} is {named}; leave --variant out")
    return asked or named
