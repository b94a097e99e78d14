# Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
"""What this CPU has, as far as the int4 backends ask: read once, when first asked for.

What this file offers:
    cpu                 the facts, one `Cpu`
    threads             how many threads a kernel of ours runs on
    INSTRUCTION_SETS    what our kernels are compiled for
    bf16_matmul         a product of bfloat16 matrices, in the arithmetic that it is fast in
    BlockLayout         an order of nibbles in which PyTorch's int4 operator may read weights
"""

import ctypes
import math
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from .int4_memory import control_groups

AVX512 = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "fma")
# Best first. Features as /proc/cpuinfo spells them.
INSTRUCTION_SETS = {
    "AVX512_BF16": (*AVX512, "avx512_vnni", "avx512_bf16"),
    "AVX512_VNNI": (*AVX512, "avx512_vnni"),
    "AVX512": AVX512,
    "AVX2_VNNI": ("avx2", "fma", "f16c", "avx_vnni"),
    "AVX2": ("avx2", "fma", "f16c"),
    "NEON_BF16": ("asimd", "asimddp", "i8mm", "bf16"),
    "NEON_DOTPROD": ("asimd", "asimddp"),
    "NEON": ("asimd",),
}

# Rows of activations up to which the kernel for few beats the one for many, where that is not 16, or with AMX 24; Arm's
# are counted instructions, AVX2_VNNI's measured on AVX512's forms of the same ones.
NATIVE_ROWS = {"AVX512_VNNI": 13, "AVX512": 10, "AVX2_VNNI": 5, "AVX2": 10, "NEON": 5, "NEON_BF16": 11}

# Where Linux tells of them on 64-bit Arm: a word of the auxiliary vector, and its bit (asm/hwcap.h).
AT_HWCAP, AT_HWCAP2 = 16, 26
ARM_FEATURES = {"asimd": (AT_HWCAP, 1), "asimddp": (AT_HWCAP, 20), "i8mm": (AT_HWCAP2, 13), "bf16": (AT_HWCAP2, 14)}


@dataclass(frozen=True)
class BlockLayout:
    """Where the nibbles of one block of outputs stand in its B/2 bytes (per input).

    halves: output n < B/2 is the low nibble of byte n, output n + B/2 the high nibble of byte n; else output 2n is the
    low and 2n + 1 the high nibble of byte n.
    """

    outputs: int
    halves: bool

    def join(self, nibbles: torch.Tensor) -> torch.Tensor:
        """uint8 [..., B] of codes -> uint8 [..., B/2]."""
        half = self.outputs // 2
        low, high = (
            (nibbles[..., :half], nibbles[..., half:]) if self.halves else (nibbles[..., ::2], nibbles[..., 1::2])
        )
        return low | (high << 4)

    def split(self, packed: torch.Tensor) -> torch.Tensor:
        """uint8 [..., B/2] -> uint8 [..., B] of codes."""
        low, high = packed & 15, packed >> 4
        return torch.cat([low, high], dim=-1) if self.halves else torch.stack([low, high], dim=-1).flatten(-2)


@dataclass(frozen=True)
class Cpu:
    """Facts that choose backends, instructions and row thresholds.

    Attributes:
        features: as Linux lists them; for Arm those of ARM_FEATURES; empty on other systems.
        instruction_set: the first of INSTRUCTION_SETS that the CPU has all of, or None.
        amx: whether torch's bfloat16 GEMM has matrix units to run on, which no kernel of ours uses.
        bf16_gemm: whether torch has instructions for bfloat16 to multiply matrices with. Else it has plain loops, which
            take 9 to more than 100 times as long as float32's GEMM, or with AVX512 a detour that takes 4 times as long.
        aten_layout: how torch's int4 operator wants weights; None where it is missing or its layout unknown to us.
        native_rows, aten_rows: rows of activations up to which our int4 kernel, or torch's, beats multiplying by
            dequantized weights (benchmarks/RESULTS.md).
        given: CPUs that this process may use, as `given_cpus` counts them.
    """

    features: frozenset[str]
    instruction_set: str | None
    amx: bool
    bf16_gemm: bool
    aten_layout: BlockLayout | None
    native_rows: int
    aten_rows: int
    given: int

    @classmethod
    def with_features(cls, features: frozenset[str]) -> "Cpu":
        """A CPU with these features; what else there is to know, torch is asked."""
        name = next((name for name, needed in INSTRUCTION_SETS.items() if features.issuperset(needed)), None)
        amx = "amx_bf16" in features
        return cls(
            features=features,
            instruction_set=name,
            amx=amx,
            bf16_gemm=_has_bf16_gemm(features),
            aten_layout=_find_aten_layout(),
            native_rows=NATIVE_ROWS.get(name, 24 if amx else 16),
            aten_rows=256 if torch.backends.cpu.get_cpu_capability() == "AVX2" else 8,
            given=given_cpus(),
        )


_cpu: Cpu | None = None


def cpu() -> Cpu:
    """This machine's CPU."""
    global _cpu  # and not functools.cache, which torch.compile does not trace
    if _cpu is None:
        _cpu = Cpu.with_features(_features())
    return _cpu


def threads() -> int:
    """Threads for a kernel of ours: torch's number, and no more than the CPUs that this process is given.

    A kernel's threads wait for each other several times a layer, spinning, so that one that the system does not let run
    stops all of them. torch counts CPUs as it is loaded, by the affinity mask and one for two hyperthreads, which share
    the units that multiply and the way to memory; but it knows nothing of a container's quota, nor of a mask that was
    narrowed later. A number that was set by hand counts, hyperthreads too, up to what is given.
    """
    return min(torch.get_num_threads(), cpu().given)


def given_cpus() -> int:
    """CPUs of the affinity mask, or of the least quota of this process's control groups, rounded up, where it is less.

    Rounded up, since a thread that is stopped for half of the time still does more than none.
    """
    counted = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(min([counted, *(math.ceil(quota) for quota in _quotas())]), 1)


def _quotas() -> list[float]:
    """Limits on this process's time on CPUs, as numbers of CPUs."""
    quotas = []
    for version, folder in control_groups("cpu"):
        try:
            if version == 2:
                quota, period = map(int, (folder / "cpu.max").read_text().split())
            else:
                quota, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        except (OSError, ValueError):  # no limit ("max"), or no such group in this container
            continue
        if quota > 0 and period > 0:  # -1: no limit
            quotas.append(quota / period)
    return quotas


def bf16_matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """bfloat16 [M, K] @ [K, N] -> [M, N]: bfloat16, or float32 where the CPU computes no other."""
    return a @ b if cpu().bf16_gemm else a.float() @ b.float()


def _features() -> frozenset[str]:
    if sys.platform == "linux" and platform.machine() == "aarch64":
        ask = ctypes.CDLL(None).getauxval
        ask.argtypes, ask.restype = (ctypes.c_ulong,), ctypes.c_ulong
        return frozenset(name for name, (word, bit) in ARM_FEATURES.items() if ask(word) >> bit & 1)
    try:
        with Path("/proc/cpuinfo").open() as lines:
            return frozenset(next((line.split() for line in lines if line.startswith("flags")), []))
    except OSError:
        return frozenset()


def _has_bf16_gemm(features: frozenset[str]) -> bool:
    """What oneDNN says; but of x86 it counts every AVX512."""
    ask = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    emulated = "avx512f" in features and features.isdisjoint(("avx512_bf16", "amx_bf16"))
    return ask is not None and ask() and not emulated


def _find_aten_layout() -> BlockLayout | None:
    """Asks torch to pack a matrix: the layout depends on the instructions that it runs on."""
    if not hasattr(torch.ops.aten, "_weight_int4pack_mm_for_cpu"):
        return None
    # Any sequence without symmetries; on the CPU, since models are built under other default devices.
    codes = (torch.arange(128 * 32, dtype=torch.int32, device="cpu") * 2654435761 >> 13) % 16
    codes = codes.to(torch.int32).view(128, 32)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1).flatten()
    for layout in (BlockLayout(64, True), BlockLayout(32, True), BlockLayout(32, False), BlockLayout(16, False)):
        blocks = codes.to(torch.uint8).view(-1, layout.outputs, 32).transpose(1, 2)
        if torch.equal(layout.join(blocks).flatten(), packed):
            return layout
    return None
