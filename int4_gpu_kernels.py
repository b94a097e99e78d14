# Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
"""The int4 kernels for NVIDIA GPUs, Ampere to Blackwell, in Triton. `int4_gpu_triton.py` says which runs when.

What this file offers:
    one_row_kernel       the product for one row of activations, on the floating-point units: made for memory's speed
    many_rows_kernel     the product on the tensor cores, in parts of the inputs (split-K) where outputs are few
    sum_parts_kernel     adds such parts
    dequantize_kernel    rows of the matrix as floats: those of a range (for cuBLAS) or those of ids (the embedding)
    norm_kernel          Gemma's RMS norm
    heads_kernel         norm and rotary position of queries and keys, where the projections left them
    gated_kernel         gelu(gate) * up, where the projections left them

The products take up to three matrices with the same inputs, a, b and c (q, k and v, say), and write y as if these were
one matrix, one below the other; of an absent one the number of outputs is 0. Their scales have one dtype.

A matrix W [N, K] is `W[n, k] = (code[n, k] - 8) * scale[n, k // 32]`. Its layout here, rows one after the other:

    codes    int32 [N, K/8]    word 4g + j of a row holds the codes of inputs 32g + 4i + j, i = 0..7, in nibble i
    scales   [N, K/32]         bfloat16, float16 or float32, as on disk

so that the 16 bytes that a thread loads at once are one group and need one scale, and that shifting words by 4i bits
gives codes of inputs that lie beside each other, four by four.

All sums are float32. Rows are counted in int64: the outputs of a 262,208-row head for a long prompt are more than 2^31.
"""

try:
    import triton
    import triton.language as tl
except ImportError as error:  # in a `try`, because transformers' loader demands all packages that are imported outside
    raise ImportError("the int4 GPU kernels need triton, which comes with PyTorch for CUDA") from error


@triton.jit
def _as_float(words, i: tl.constexpr):
    """Nibble i of each word, read as the bits of a float32 where it lies: a denormal, code * 2^(bit - 149).

    So a nibble takes one bit operation and an eighth of a shift, where converting an integer would take an instruction
    of a quarter's speed. GPUs multiply and add denormals at full speed. What a nibble is multiplied by has to have the
    factor `_unit(i)`: then all of them count units of 2^-64, which sums are freed of at their end (`UNITS`).
    Product and sum are written as one `tl.fma`, because from 3.10 on Triton does not join them unasked.
    """
    words = words.to(tl.uint32, bitcast=True)
    if i >= 4:
        words = words >> 13  # into the 23 bits of a mantissa; by 16, two of the four would take an instruction more
    return (words & (0xF << (4 * i - i // 4 * 13))).to(tl.float32, bitcast=True)


@triton.jit
def _unit(i: tl.constexpr):
    """2^85 and less: scales and activations below 2^42 do not overflow, and above 2^-62 lose nothing."""
    return 2.0 ** (85 - 4 * i + i // 4 * 13)


UNITS = tl.constexpr(2.0**64)


@triton.jit
def _matrix_of(
    block,
    codes_a,
    scales_a,
    outputs_a,
    codes_b,
    scales_b,
    outputs_b,
    codes_c,
    scales_c,
    outputs_c,
    BLOCK_N: tl.constexpr,
):
    """The matrix that a block of outputs is of (no block is of two), and where in it and in y the block lies.

    Returns:
        codes, scales and outputs of that matrix, the number of the block in it, and the first of its outputs in y.
    """
    end_a = tl.cdiv(outputs_a, BLOCK_N)
    end_b = end_a + tl.cdiv(outputs_b, BLOCK_N)
    of_a = block < end_a
    of_b = block < end_b
    codes = tl.where(of_a, codes_a, tl.where(of_b, codes_b, codes_c))
    scales = tl.where(of_a, scales_a, tl.where(of_b, scales_b, scales_c))
    outputs = tl.where(of_a, outputs_a, tl.where(of_b, outputs_b, outputs_c))
    block -= tl.where(of_a, 0, tl.where(of_b, end_a, end_b))
    first = tl.where(of_a, 0, tl.where(of_b, outputs_a, outputs_a + outputs_b))
    return codes, scales, outputs, block, first


@triton.jit
def one_row_kernel(
    x,  # bfloat16 [INPUTS]
    y,  # bfloat16 [all outputs]
    codes_a,  # int32 [outputs_a, INPUTS / 8]
    scales_a,  # [outputs_a, INPUTS / 32]
    outputs_a,
    codes_b,
    scales_b,
    outputs_b,
    codes_c,
    scales_c,
    outputs_c,
    INPUTS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_G: tl.constexpr,
    STAGES: tl.constexpr,
):
    """y = W @ x: a program has BLOCK_N outputs and goes through their groups BLOCK_G at a time.

    With 32 groups to a warp a thread has four words, which is one group, of every output, and keeps the activations of
    that group in registers for all of them. Words and scales are on their way STAGES - 1 steps before they are needed.
    """
    GROUPS: tl.constexpr = INPUTS // 32
    codes, scales, outputs, block, first = _matrix_of(
        tl.program_id(0),
        codes_a,
        scales_a,
        outputs_a,
        codes_b,
        scales_b,
        outputs_b,
        codes_c,
        scales_c,
        outputs_c,
        BLOCK_N,
    )
    n = (block * BLOCK_N + tl.arange(0, BLOCK_N))[:, None]
    row = n.to(tl.int64)
    total = tl.zeros([BLOCK_N, BLOCK_G], tl.float32)
    for start in tl.range(0, GROUPS, BLOCK_G, num_stages=STAGES):  # the launch's would be for tl.dot only
        g = start + tl.arange(0, BLOCK_G)[None, :]
        w = 4 * start + tl.arange(0, 4 * BLOCK_G)[None, :]
        words = tl.load(codes + row * (INPUTS // 8) + w, mask=(n < outputs) & (w < INPUTS // 8), other=0)
        scale = tl.load(scales + row * GROUPS + g, mask=(n < outputs) & (g < GROUPS), other=0).to(tl.float32)
        product = tl.zeros([BLOCK_N, 4 * BLOCK_G], tl.float32)
        excess = tl.zeros([1, 4 * BLOCK_G], tl.float32)  # what the product owes to the 8 of the codes
        for i in tl.static_range(8):
            activation = tl.load(x + (w // 4 * 32 + 4 * i + w % 4), mask=w < INPUTS // 8, other=0).to(tl.float32)
            product = tl.fma(_as_float(words, i), activation * _unit(i), product)
            excess += activation
        product = tl.sum(tl.reshape(product, [BLOCK_N, BLOCK_G, 4]), axis=2)
        excess = tl.sum(tl.reshape(excess, [1, BLOCK_G, 4]), axis=2)
        total += (product - excess * (8 / UNITS)) * scale
    n = block * BLOCK_N + tl.arange(0, BLOCK_N)
    tl.store(y + first + n, (tl.sum(total, axis=1) * UNITS).to(y.dtype.element_ty), mask=n < outputs)


@triton.jit(do_not_specialize=["rows"])  # one compilation for all batch sizes
def many_rows_kernel(
    x,  # bfloat16 [rows, INPUTS]; PERMUTED: [rows, PADDED], see below
    y,  # bfloat16 [rows, all outputs], or float32 [SPLIT_K, rows, all outputs]
    rows,
    codes_a,  # int32 [outputs_a, INPUTS / 8]
    scales_a,  # [outputs_a, INPUTS / 32]
    outputs_a,
    codes_b,
    scales_b,
    outputs_b,
    codes_c,
    scales_c,
    outputs_c,
    INPUTS: tl.constexpr,
    PERMUTED: tl.constexpr,
    SPLIT_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """y = x @ W.T, computed as W @ x.T, 256 inputs at a time: 32 words of each row, whose nibbles i make one product.

    The weights are the left operand because that one can stay in registers on every GPU: Triton then reads the words
    as the tensor cores want them, which it does only for what is made of loads and constants alone. They are rounded to
    bfloat16 after scaling, as dequantized weights are. The activations that belong to nibble i lie 4 by 4, 32 apart;
    with many rows it pays to have them side by side before (PERMUTED: input 256c + 32i + 4g + j of x, zeros beyond
    INPUTS).
    """
    GROUPS: tl.constexpr = INPUTS // 32
    CHUNKS: tl.constexpr = (GROUPS + 7) // 8
    PER_PART: tl.constexpr = (CHUNKS + SPLIT_K - 1) // SPLIT_K
    codes, scales, outputs, block, first = _matrix_of(
        tl.program_id(1),
        codes_a,
        scales_a,
        outputs_a,
        codes_b,
        scales_b,
        outputs_b,
        codes_c,
        scales_c,
        outputs_c,
        BLOCK_N,
    )
    n = (block * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)[:, None]
    m = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)[None, :]
    part = tl.program_id(2)
    total = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for step in range(0, PER_PART):
        chunk = part * PER_PART + step
        w = chunk * 32 + tl.arange(0, 32)
        g = chunk * 8 + tl.arange(0, 8)[None, :]
        here = (n < outputs) & (w < INPUTS // 8)[None, :]
        words = tl.load(codes + n * (INPUTS // 8) + w[None, :], mask=here, other=0)
        scale = tl.load(scales + n * GROUPS + g, mask=(n < outputs) & (g < GROUPS), other=0).to(tl.float32)
        scale = tl.reshape(tl.broadcast_to(scale[:, :, None], [BLOCK_N, 8, 4]), [BLOCK_N, 32])  # of each word
        excess = scale * (8 / UNITS)
        for i in tl.static_range(8):
            if PERMUTED:
                k = chunk * 256 + 32 * i + tl.arange(0, 32)
                here = (m < rows) & (k < CHUNKS * 256)[:, None]
                activation = tl.load(x + m * (CHUNKS * 256) + k[:, None], mask=here, other=0)
            else:
                k = w // 4 * 32 + 4 * i + w % 4
                here = (m < rows) & (k < INPUTS)[:, None]
                activation = tl.load(x + m * INPUTS + k[:, None], mask=here, other=0)
            weight = tl.fma(_as_float(words, i), scale * _unit(i), -excess)
            total = tl.dot(weight.to(tl.bfloat16), activation, total)
    at = y + (part * rows + m) * (outputs_a + outputs_b + outputs_c) + first + n
    tl.store(at, (total * UNITS).to(y.dtype.element_ty), mask=(m < rows) & (n < outputs))


@triton.jit(do_not_specialize=["count"])
def sum_parts_kernel(parts, y, count, SPLIT_K: tl.constexpr, BLOCK: tl.constexpr):
    """float32 parts [SPLIT_K, count] -> their sum, y [count], always added in the same order."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for part in tl.static_range(SPLIT_K):
        total += tl.load(parts + part * count + at, mask=at < count, other=0)
    tl.store(y + at, total.to(y.dtype.element_ty), mask=at < count)


@triton.jit(do_not_specialize=["first"])
def dequantize_kernel(
    ids,  # int64 [rows], the rows wanted; BY_ID false: not read
    codes,  # int32 [outputs, INPUTS / 8]
    scales,  # [outputs, INPUTS / 32]
    y,  # [rows, INPUTS], any floating dtype
    first,  # BY_ID false: row 0 of y is this row of the matrix
    outputs,
    INPUTS: tl.constexpr,
    BY_ID: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Rows of W: float32(code * scale), then rounded to y's dtype. An id that is no row of W gives NaN."""
    row = tl.program_id(0).to(tl.int64)
    if BY_ID:
        n = tl.load(ids + row).to(tl.int64)
    else:
        n = first + row
    g = (tl.program_id(1) * (BLOCK_K // 32) + tl.arange(0, BLOCK_K // 32))[:, None]
    k = tl.arange(0, 32)[None, :]  # in its group
    here = (g < INPUTS // 32) & (n >= 0) & (n < outputs)
    word = tl.load(codes + n * (INPUTS // 8) + (4 * g + k % 4), mask=here, other=0)
    scale = tl.load(scales + n * (INPUTS // 32) + g, mask=here, other=float("nan")).to(tl.float32)
    code = (word >> (k // 4 * 4)) & 15
    weight = (code - 8).to(tl.float32) * scale
    tl.store(y + row * INPUTS + (32 * g + k), weight.to(y.dtype.element_ty), mask=g < INPUTS // 32)


@triton.jit
def norm_kernel(x, gain, y, eps, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Rows x [rows, SIZE] -> y: x / sqrt(mean(x^2) + eps) * (1 + gain), rounded once. BLOCK: SIZE or more."""
    row = tl.program_id(0).to(tl.int64) * SIZE
    k = tl.arange(0, BLOCK)
    value = tl.load(x + row + k, mask=k < SIZE, other=0).to(tl.float32)
    weight = 1 + tl.load(gain + k, mask=k < SIZE, other=0).to(tl.float32)
    value *= tl.rsqrt(tl.sum(value * value, axis=0) / SIZE + eps)
    tl.store(y + row + k, (value * weight).to(y.dtype.element_ty), mask=k < SIZE)


@triton.jit
def heads_kernel(
    x,  # [rows, stride], of which the first (queries + keys) * SIZE are heads
    gain_q,  # [SIZE]
    gain_k,
    cos,  # [rows, SIZE]
    sin,
    y,  # [rows, queries + keys, SIZE]
    stride,
    queries,
    eps,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """RMS norm of each head, rounded, then its rotary position, rounded again."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    k = tl.arange(0, BLOCK)
    here, left = k < SIZE, k < SIZE // 2
    partner = tl.where(left, k + SIZE // 2, k - SIZE // 2)
    x += row * stride + head * SIZE
    gain = tl.where(head < queries, gain_q, gain_k)
    value = tl.load(x + k, mask=here, other=0).to(tl.float32)
    other = tl.load(x + partner, mask=here, other=0).to(tl.float32)
    factor = tl.rsqrt(tl.sum(value * value, axis=0) / SIZE + eps)
    value *= factor * (1 + tl.load(gain + k, mask=here, other=0).to(tl.float32))
    other *= factor * (1 + tl.load(gain + partner, mask=here, other=0).to(tl.float32))
    value = value.to(y.dtype.element_ty).to(tl.float32)
    other = other.to(y.dtype.element_ty).to(tl.float32)
    value *= tl.load(cos + row * SIZE + k, mask=here, other=0).to(tl.float32)
    other *= tl.load(sin + row * SIZE + k, mask=here, other=0).to(tl.float32)
    value += tl.where(left, -other, other)
    at = y + (row * tl.num_programs(1) + head) * SIZE + k
    tl.store(at, value.to(y.dtype.element_ty), mask=here)


@triton.jit
def gated_kernel(x, y, size, BLOCK: tl.constexpr):
    """x [rows, 2 * size], gate and up beside each other -> y [rows, size]: gelu(gate), rounded, times up.

    gelu in its tanh form: 0.5 * (1 + tanh(z)) is sigmoid(2 * z).
    """
    row = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    gate = tl.load(x + row * 2 * size + k, mask=k < size, other=0).to(tl.float32)
    up = tl.load(x + (row * 2 + 1) * size + k, mask=k < size, other=0).to(tl.float32)
    gate *= tl.sigmoid(1.5957691216057308 * (gate + 0.044715 * gate * gate * gate))  # 2 * sqrt(2 / pi)
    gate = gate.to(y.dtype.element_ty).to(tl.float32)
    tl.store(y + row * size + k, (gate * up).to(y.dtype.element_ty), mask=k < size)
