# Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
"""What a checkpoint's tensors become on a CPU, at the speed of its memory: AWQ matrices while transformers loads the
rest, and the embedding's codes.

What this file offers:
    repacking        begins it, where `int4_cpu_native.py` is what will multiply
    Repacking        what goes on then
    recover_codes    plain floats and their scales -> row-major codes

Half of loading is Python of transformers, which keeps one CPU busy; the other half is memory that becomes the model's,
which the system hands out page by page. The two need not wait for each other.
"""

import contextlib
import ctypes
import threading
from collections.abc import Iterator

import torch
from safetensors import safe_open
from torch import nn

from .int4_backend import choose_backend
from .int4_codes import GROUP_SIZE, NOT_PRODUCTS, Packed
from .int4_codes import recover_codes as in_floats
from .int4_cpu_hardware import threads
from .int4_cpu_library import PackAwq, PackAwqs, Recover, library
from .int4_cpu_native import NativeCpu, to_pack

DEVICE, DTYPE = torch.device("cpu"), torch.bfloat16


class Repacking:
    """AWQ matrices that become tensors of `NativeCpu` from now on, in threads that leave one CPU to the caller."""

    def __init__(self, stored: dict[str, tuple[torch.Tensor, torch.Tensor]]):
        """Begins it.

        Args:
            stored: name -> qweight int32 [K, N/8] and scales [K/32, N], both contiguous, in mapped files. They are
                nobody else's: their pages are let go as they are read.
        """
        pairs = {name: to_pack(*tensors) for name, tensors in stored.items()}
        self._stored, self._packed = stored, {name: packed for name, (_, packed) in pairs.items()}
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
    tensors = {}
    for file in files if chosen else []:
        with safe_open(file, framework="pt") as shard:
            for name in shard.keys():  # noqa: SIM118 (a safe_open has no __iter__)
                if name.rpartition(".")[0] in chosen:
                    tensors[name] = shard.get_tensor(name)
    begun = Repacking({stem: (tensors[f"{stem}.qweight"], tensors[f"{stem}.scales"]) for stem in sorted(chosen)})
    try:
        yield begun
    finally:
        begun.stop()


def _is_awq(qweight: torch.Tensor, scales: torch.Tensor | None) -> bool:
    """Whether these are AWQ's int32 [K, N/8] and scales [K/32, N]; an embedding's are not."""
    if qweight.dtype != torch.int32 or qweight.ndim != 2 or qweight.shape[0] % GROUP_SIZE or scales is None:
        return False
    return scales.is_floating_point() and scales.shape == (qweight.shape[0] // GROUP_SIZE, qweight.shape[1] * 8)


def recover_codes(weight: torch.Tensor, scales: torch.Tensor, disk_dtype: torch.dtype) -> torch.Tensor:
    """As `int4_codes.recover_codes`, at the memory's speed for bfloat16 on a CPU that has the kernels."""
    rounded_once = disk_dtype in (torch.bfloat16, torch.float32)
    whole = weight.is_contiguous() and weight.shape[1] % GROUP_SIZE == 0
    if (weight.device.type, weight.dtype) != ("cpu", torch.bfloat16) or not rounded_once or not whole or not library():
        return in_floats(weight, scales, disk_dtype)
    codes = torch.empty(weight.shape[0], weight.shape[1] // 2, dtype=torch.uint8)
    scales = scales.float().contiguous()
    call = Recover(weight.data_ptr(), scales.data_ptr(), codes.data_ptr(), *weight.shape)
    library().int4_recover(call, threads())
    if call.wrong:
        raise ValueError(NOT_PRODUCTS)
    return codes
