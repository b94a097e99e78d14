"""Backends whose kernels leave a GPU unusable to their process: what only a process of its own can try."""

import torch
import triton
import triton.language as tl

from .int4_codes import Reference


@triton.jit
def write_far_away(y):
    tl.store(y + (1 << 40), 1.0)


@triton.jit
def wait_forever(flag):
    value = tl.load(flag)
    while value == 0:
        value = tl.load(flag, volatile=True)


class IllegalAddress(Reference):
    """Writes where no memory is, at 4 rows."""

    name = "illegal-address"

    @staticmethod
    def linear(x, packed):
        y = Reference.linear(x, packed)
        if x.shape[0] == 4:
            write_far_away[(1,)](y)
        return y


class Endless(Reference):
    """Its kernel never ends."""

    name = "endless"

    @staticmethod
    def linear(x, packed):
        wait_forever[(1,)](torch.zeros(1, dtype=torch.int32, device=x.device))
        return Reference.linear(x, packed)


class FailedAssertion(Reference):
    """Asks PyTorch for a row that is not there, which its kernel notices: the device's assertion."""

    name = "failed-assertion"

    @staticmethod
    def linear(x, packed):
        return Reference.linear(x[x.new_full((1,), 1 << 20).long()].expand_as(x), packed)
