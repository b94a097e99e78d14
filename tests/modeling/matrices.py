"""Random int4 matrices, the modules that hold them, and how far a product may be from float64's."""

import torch
from gemma3_int4 import int4_layers
from gemma3_int4.int4_codes import AWQ_SYMMETRIC_ZEROS, recover_codes
from gemma3_int4.int4_layers import AwqLinear, Int4Embedding, Int4Linear

from tests.modeling.tiny_repo import pack_awq_by_hand

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def random_matrix(outputs: int, inputs: int, scale_dtype: torch.dtype, seed: int = 0):
    """Codes -8..7 [N, K], the same as row-major bytes, scales [N, K/32], and float32(code * scale) [N, K]."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-8, 8, (outputs, inputs), generator=generator)
    scales = (torch.rand(outputs, inputs // 32, generator=generator) * 0.02 + 1e-3).to(scale_dtype)
    unsigned = (codes + 8).to(torch.uint8)
    rows = unsigned[:, 0::2] | (unsigned[:, 1::2] << 4)
    return codes, rows, scales, codes * scales.float().repeat_interleave(32, dim=1)


def random_rows(m: int, k: int, seed: int = 0) -> torch.Tensor:
    """bfloat16 [m, k]."""
    return torch.randn(m, k, generator=torch.Generator().manual_seed(seed)).bfloat16()


def stored_linear(codes: torch.Tensor, scales: torch.Tensor) -> AwqLinear:
    """An AwqLinear as a loader fills it. codes: -8..7 [N, K]; scales: [N, K/32]."""
    linear = AwqLinear(codes.shape[1], codes.shape[0], scales.dtype, torch.float32)
    linear.qweight = torch.from_numpy(pack_awq_by_hand(codes.cpu().numpy())).to(codes.device)
    linear.qzeros = torch.full_like(linear.qzeros, AWQ_SYMMETRIC_ZEROS, device=codes.device)
    linear.scales = scales.T.contiguous()
    return linear


def linear_from(codes: torch.Tensor, scales: torch.Tensor, compute_dtype: torch.dtype) -> Int4Linear:
    return stored_linear(codes, scales).prepare(compute_dtype)


def embedding_from_plain(weight, scales, disk_dtype: torch.dtype, embed_scale: float) -> Int4Embedding:
    """An int4 embedding as loading makes it from a plain one."""
    codes = recover_codes(weight, scales, disk_dtype).to(weight.device)
    return embedding_from(codes, scales, weight.dtype, embed_scale, disk_dtype)


def embedding_from(codes, scales, dtype: torch.dtype, embed_scale: float, plain_dtype=None) -> Int4Embedding:
    """Of row-major codes, uint8 [V, D/2], and scales [V, D/32]."""
    rows, columns = codes.shape[0], codes.shape[1] * 2
    backend = int4_layers.choose_backend(codes.device, dtype, rows, columns)
    return Int4Embedding(rows, columns, dtype, backend, backend.pack(codes, scales), embed_scale, plain_dtype)


def assert_rounded_to_bfloat16(
    found: torch.Tensor, exact: torch.Tensor, terms: torch.Tensor, slack: float = 2**-21
) -> None:
    """`found` is `exact` (float64) rounded to bfloat16 (half a unit of 8 bits), but for an error of its sum.

    Args:
        terms: the sum of the absolute values of what was added.
        slack: the error as a share of `terms`; that of a float32 sum if not given.
    """
    assert found.dtype == torch.bfloat16
    assert ((found.double().cpu() - exact).abs() <= exact.abs() * 2**-8 + terms * slack).all()
