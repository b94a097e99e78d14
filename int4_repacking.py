# Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
"""What a checkpoint's tensors become on a CPU, at the speed of its memory: AWQ matrices while transformers loads the
rest, and the embedding's codes.

What this file offers:
    repacking        begins it, where `int4_cpu_native.py` is what will multiply
    Repacking        what goes on then
    reading_ahead    files come from disk while the caller goes on
    recover          the embedding's tensors from plain floats and their scales

Half of loading is Python of transformers, which keeps one CPU busy; the other half is memory that becomes the model's,
which the system hands out page by page. The two need not wait for each other.
"""

import contextlib
import ctypes
import os
import threading
from collections.abc import Iterator

import torch
from safetensors import safe_open
from torch import nn

from .int4_backend import choose_backend
from .int4_codes import GROUP_SIZE, NOT_PRODUCTS, Packed, recover_codes, row_blocks
from .int4_cpu_hardware import threads
from .int4_cpu_library import PackAwq, PackAwqs, ReadAhead, Recover, library
from .int4_cpu_native import NativeCpu, pack_rows, packed_scales, to_pack
from .int4_memory import bytes_available

DEVICE, DTYPE = torch.device("cpu"), torch.bfloat16
# Weights whose codes are recovered before they are packed: 2 MB of codes, which stay in a cache.
CACHED_WEIGHTS = 1 << 22


class Repacking:
    """AWQ matrices that become tensors of `NativeCpu` from now on, in threads that leave one CPU to the caller."""

    def __init__(self, stored: dict[str, dict[str, torch.Tensor]]):
        """Begins it.

        Args:
            stored: by the matrices' names and the tensors', qweight int32 [K, N/8], scales [K/32, N] and what else is
                of interest to the caller; contiguous, in mapped files. They are nobody else's: the pages of qweight and
                scales are let go as they are read.
        """
        pairs = {name: to_pack(tensors["qweight"], tensors["scales"]) for name, tensors in stored.items()}
        self.stored, self._packed = stored, {name: packed for name, (_, packed) in pairs.items()}
        self._calls = (PackAwq * len(pairs))(*(call for call, _ in pairs.values()))
        self._rest = PackAwqs(ctypes.addressof(self._calls), len(pairs), in_files=True)
        self._thread = threading.Thread(target=self._run, args=(max(threads() - 1, 1),)) if pairs else None
        if self._thread:
            self._thread.start()

    def finish(self, model: nn.Module) -> dict[str, Packed]:
        """Helps with what is left.

        Returns:
            The tensors, by name; none where the model turned out to be on another device, or of another dtype.
        """
        if not self._thread or (model.device, model.dtype) != (DEVICE, DTYPE):
            return {}
        self._run(1)
        self._thread.join()
        return self._packed

    def stop(self) -> None:
        """Ends it, after the matrix that it is at."""
        self._rest.next = self._rest.count
        if self._thread:
            self._thread.join()

    def _run(self, threads: int) -> None:
        library().int4_pack_awq(self._rest, threads)


@contextlib.contextmanager
def reading_ahead(files: list[str]) -> Iterator[None]:
    """Within, files come from disk into the system's cache, one after the other; those that are there are passed by.

    A mapped file is read where it is touched, and little more: a disk takes twice as long for that.
    """
    call = ReadAhead()

    def read() -> None:
        for file in files:
            with open(file, "rb") as opened:
                call.file, call.bytes = opened.fileno(), os.path.getsize(file)
                if not _is_cached(call.file, call.bytes):
                    library().int4_read_ahead(call, 1)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield
    finally:
        call.stopped = 1
        thread.join()


def _is_cached(file: int, size: int) -> bool:
    """Whether some bytes all over a file can be read without waiting, where the system says so (Linux)."""
    try:
        return all(os.preadv(file, [bytearray(1)], size * i // 32, os.RWF_NOWAIT) for i in range(32))
    except (OSError, AttributeError):
        return False


@contextlib.contextmanager
def repacking(
    files: list[str], stored: dict[str, torch.Tensor], device: torch.device | None, dtype: torch.dtype
) -> Iterator[Repacking]:
    """Within, the matrices that `NativeCpu` will multiply by are repacked.

    Args:
        files: the checkpoint's.
        stored: what is in them, as meta tensors by name.
        device, dtype: the model's, as far as one knows before it is loaded.
    """
    chosen = {
        name.removesuffix(".qweight")
        for name, qweight in stored.items()
        if (device, dtype) == (DEVICE, DTYPE) and name.endswith(".qweight")
        if _is_awq(qweight, stored.get(name.removesuffix("qweight") + "scales"))
        if choose_backend(DEVICE, DTYPE, qweight.shape[1] * 8, qweight.shape[0]) is NativeCpu
    }
    files, tensors = files if chosen else [], {}
    available = bytes_available(DEVICE)
    fit = available is None or sum(map(os.path.getsize, files)) < available
    with reading_ahead(files if fit else []):
        for file in files:  # in this order they are repacked, too
            with safe_open(file, framework="pt") as shard:
                for name in shard.keys():  # noqa: SIM118 (a safe_open has no __iter__)
                    stem, _, kind = name.rpartition(".")
                    if stem in chosen:
                        tensors.setdefault(stem, {})[kind] = shard.get_tensor(name)
        begun = Repacking(tensors)
        try:
            yield begun
        finally:
            begun.stop()


def _is_awq(qweight: torch.Tensor, scales: torch.Tensor | None) -> bool:
    """Whether these are AWQ's int32 [K, N/8] and scales [K/32, N]; an embedding's are not."""
    if qweight.dtype != torch.int32 or qweight.ndim != 2 or qweight.shape[0] % GROUP_SIZE or scales is None:
        return False
    return scales.is_floating_point() and scales.shape == (qweight.shape[0] // GROUP_SIZE, qweight.shape[1] * 8)


def recover(weight: torch.Tensor, scales: torch.Tensor, disk_dtype: torch.dtype, in_file: bool = False) -> Packed:
    """The tensors of `NativeCpu` of a plain matrix on a CPU: those of the codes that `int4_codes.recover_codes` finds,
    at the memory's speed where the weights are bfloat16.

    Args:
        weight: [N, K], as loaded, N a multiple of 32.
        scales, disk_dtype: as there.
        in_file: the weights are in a mapped file, whose pages are let go as they are read.

    Raises:
        ValueError: `scales` do not belong to `weight`.
    """
    rounded_once = disk_dtype in (torch.bfloat16, torch.float32)
    whole = weight.is_contiguous() and weight.shape[1] % GROUP_SIZE == 0
    if weight.dtype != torch.bfloat16 or not rounded_once or not whole:
        return NativeCpu.pack(recover_codes(weight, scales, disk_dtype), scales)
    packed, factors = packed_scales(scales), scales.float().contiguous()
    blocks = row_blocks(*weight.shape, CACHED_WEIGHTS, multiple=16)
    codes = torch.empty(blocks[0].stop, weight.shape[1] // 2, dtype=torch.uint8)
    for block in blocks:
        rows = codes[: block.stop - block.start]
        pointers = (tensor.data_ptr() for tensor in (weight[block], factors[block], rows))
        call = Recover(*pointers, len(rows), weight.shape[1], in_file)
        library().int4_recover(call, threads())
        if call.wrong:
            raise ValueError(NOT_PRODUCTS)
        pack_rows(rows, packed["block_codes"][block.start // 16 :])
    return packed
