"""Backends that are wrong, or worse, each in one way: what the proof has to notice. All but for that are the reference.

Packed into a copy of the modeling files they are tried in a child process, as on a GPU.
"""

import os
import signal
import time
from typing import ClassVar

import torch

from .int4_codes import Reference


class Wrong(Reference):
    """One element of one product, and by no more than a code read as its neighbor."""

    name = "wrong-in-one-element"

    @staticmethod
    def linear(x, packed):
        y = Reference.linear(x, packed)
        if y.shape[0] > 1:
            y[1, -1] += y[1, -1] / 8 + packed["row_scales"][-1, 0]
        return y


class WrongAt32(Reference):
    """A row of activations is taken for another, at 32 rows alone."""

    name = "wrong-at-32-rows"

    @staticmethod
    def linear(x, packed):
        return Reference.linear(x.flip(0) if x.shape[0] == 32 else x, packed)


class Unwritten(Reference):
    """An element is left as memory had it."""

    name = "unwritten"

    @staticmethod
    def linear(x, packed):
        y = torch.empty(x.shape[0], packed["row_codes"].shape[0], dtype=x.dtype)
        y[:, :-1] = Reference.linear(x, packed)[:, :-1]
        return y


class WrongAgain(Reference):
    """Right the first time: a sum goes on where an earlier call with as many rows has left it."""

    name = "wrong-again"
    sums: ClassVar[dict[tuple[int, ...], torch.Tensor]] = {}

    @staticmethod
    def linear(x, packed):
        y = Reference.linear(x, packed)
        key = *y.shape, x.data_ptr()
        if key in WrongAgain.sums:
            y = WrongAgain.sums[key] + y
        WrongAgain.sums[key] = y
        return y


class Imprecise(Reference):
    """Every element within its bound, and all of them too far off together."""

    name = "imprecise"

    @staticmethod
    def linear(x, packed):
        factor = torch.where(x.count_nonzero(1) > 1, 1.0125, 1).unsqueeze(1)
        return (Reference.linear(x, packed).float() * factor).to(x.dtype)


class WrongEmbedding(Reference):
    name = "wrong-embedding"

    @staticmethod
    def embedding(ids, packed, dtype):
        return Reference.embedding(ids.clamp(max=packed["row_codes"].shape[0] - 2), packed, dtype)


class WrongGradient(Reference):
    name = "wrong-gradient"

    @staticmethod
    def grad_input(grad, packed):
        return Reference.grad_input(grad, packed).roll(1, 1)


class Lossy(Reference):
    name = "lossy"

    @staticmethod
    def unpack(packed):
        return packed["row_codes"], packed["row_scales"].clamp(max=0.015)


class Slow(Reference):
    name = "slow"

    @staticmethod
    def linear(x, packed):
        time.sleep(0.02)
        return Reference.linear(x, packed)


class Throwing(Reference):
    name = "throwing"

    @staticmethod
    def linear(x, packed):
        raise RuntimeError("an illegal memory access was encountered")


class Hanging(Reference):
    name = "hanging"

    @staticmethod
    def linear(x, packed):
        time.sleep(600)


class Crashing(Reference):
    name = "crashing"

    @staticmethod
    def linear(x, packed):
        if x.shape[0] > 1:
            os.kill(os.getpid(), signal.SIGSEGV)
        return Reference.linear(x, packed)
