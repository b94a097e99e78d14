# Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
"""The int4 kernels for x86 CPUs with AVX512 (VNNI and BF16), in C, compiled on the user's machine when first needed.

What this file offers:
    SOURCE     all of the C code
    library    that code, compiled and loaded: a ctypes.CDLL; or None, with one warning that says why not
    has_amx    whether torch's GEMM beats these kernels for many rows

Compiling takes about two seconds, once: the library is kept in `$XDG_CACHE_HOME/gemma3-int4` (or
`~/.cache/gemma3-int4`), in a folder that only the user may write, under a hash of what it was made from.
"""

import ctypes
import functools
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch  # noqa: F401  (the kernels' threads are those of the OpenMP runtime that comes with it)
from transformers.utils import logging

logger = logging.get_logger(__name__)

# As /proc/cpuinfo spells them; the compiler's flags are the same without the underscore.
CPU_FEATURES = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni", "avx512_bf16", "fma")
PRODUCT_ROWS = 12  # rows that `int4_product` multiplies at a time
FLAGS = (
    "-O3",
    f"-DROWS={PRODUCT_ROWS}",
    "-std=gnu11",
    "-shared",
    "-fPIC",
    *(f"-m{name.replace('_', '')}" for name in CPU_FEATURES),
)

SOURCE = r"""
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

typedef uint16_t bf16;

// Threads are torch's own: these come from the OpenMP runtime that torch has loaded.
void GOMP_parallel(void (*body)(void *), void *call, unsigned threads, unsigned flags);
void GOMP_barrier(void);
int omp_get_thread_num(void);
int omp_get_num_threads(void);

// A matrix W [n, k] = (code - 8) * scale, in blocks of 16 outputs: an output to each of the 16 lanes of a register.
typedef struct {
    const uint32_t *codes;  // [n / 16, k / 8, 16], eight codes of consecutive inputs to a word, lowest nibble first
    const void *scales;     // [n / 16, k / 32, 16]
    int32_t scale_type;     // 0 bfloat16, 1 float16, 2 float32
    int32_t n, k;
} Matrix;

// ---- Numbers ----

static inline __m512 load_bf16(const bf16 *p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)p)), 16));
}

static inline void store_bf16(bf16 *p, __m512 x) { _mm256_storeu_si256((void *)p, (__m256i)_mm512_cvtneps_pbh(x)); }

static inline __m512 load_scales(const Matrix *w, int64_t at) {
    if (w->scale_type == 2) return _mm512_loadu_ps((const float *)w->scales + at);
    const uint16_t *halves = (const uint16_t *)w->scales + at;
    return w->scale_type == 0 ? load_bf16(halves) : _mm512_cvtph_ps(_mm256_loadu_si256((const void *)halves));
}

static inline __m512 round_bf16(__m512 x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(x)), 16));
}

static inline __m512 exp_ps(__m512 x) {  // 2^(whole + part), the latter by its Taylor series: good to 2e-7
    static const float c[7] = {1, 0.693147181f, 0.240226507f, 0.0555041087f, 0.00961812911f, 0.00133335581f,
                               0.000154035304f};
    x = _mm512_min_ps(_mm512_max_ps(x, _mm512_set1_ps(-87)), _mm512_set1_ps(88));
    x = _mm512_mul_ps(x, _mm512_set1_ps(1.44269504f));
    __m512 whole = _mm512_roundscale_ps(x, 0), part = _mm512_sub_ps(x, whole), y = _mm512_set1_ps(c[6]);
    for (int i = 5; i >= 0; i--) y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(c[i]));
    return _mm512_scalef_ps(y, whole);
}

static inline __m512 gelu_tanh(__m512 x) {  // x / (1 + exp(-2 z)), z = sqrt(2 / pi) * (x + 0.044715 x^3)
    __m512 cubic = _mm512_fmadd_ps(_mm512_mul_ps(x, x), _mm512_set1_ps(0.044715f), _mm512_set1_ps(1));
    __m512 e = exp_ps(_mm512_mul_ps(_mm512_mul_ps(x, cubic), _mm512_set1_ps(-1.59576912f)));
    return _mm512_div_ps(x, _mm512_add_ps(e, _mm512_set1_ps(1)));
}

// The calling thread's part of 0..count, in multiples of `step`.
static void my_part(int64_t count, int64_t step, int64_t *from, int64_t *to) {
    int64_t threads = omp_get_num_threads(), t = omp_get_thread_num(), steps = count / step;
    *from = steps * t / threads * step;
    *to = t + 1 == threads ? count : steps * (t + 1) / threads * step;
}

// ---- Few rows: integer dot products ----

// A row of activations in fixed point. In each group of 32 inputs x = (d0 + 256 * d1 + 65536 * d2) * unit, the d's
// signed bytes and the unit a power of two, 22 bits below the largest |x| of the group: bfloat16 has 8 bits, so only
// what float32 would lose in the sum as well is rounded. A dot product with codes is then three of bytes, and exact.
typedef struct {
    int8_t *digits;  // [3, k], of each 8 inputs first the even ones, then the odd ones
    int32_t *start;  // [k / 32, 3], -8 * sum of the digits: what the codes' offset of 8 comes to
    float *unit;     // [k / 32]
} Fixed;

static size_t fixed_bytes(int64_t k) { return k / 32 * (96 + 16); }

static Fixed fixed_at(const void *memory, int64_t k, int64_t row) {
    char *p = (char *)memory + row * fixed_bytes(k);
    return (Fixed){(int8_t *)p, (int32_t *)(p + 3 * k), (float *)(p + 3 * k + k / 32 * 12)};
}

static void to_fixed(const bf16 *x, int64_t k, Fixed f) {
    const __m128i even_odd = _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
    for (int64_t g = 0; g < k / 32; g++) {
        __m512 half[2] = {load_bf16(x + g * 32), load_bf16(x + g * 32 + 16)};
        __m512i a = _mm512_castps_si512(_mm512_abs_ps(half[0])), b = _mm512_castps_si512(_mm512_abs_ps(half[1]));
        int32_t exponent = _mm512_reduce_max_epi32(_mm512_max_epi32(a, b)) >> 23;  // biased; 255: infinite or NaN
        if (exponent < 30) exponent = 30;
        __m512 shift = _mm512_set1_ps(127 + 21 - exponent);
        f.unit[g] = exponent == 255 ? NAN : ldexpf(1, exponent - 127 - 21);
        __m512i sum[3] = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512()};
        for (int h = 0; h < 2; h++) {
            __m512i rest = _mm512_cvtps_epi32(_mm512_scalef_ps(half[h], shift));
            for (int d = 0; d < 3; d++) {
                __m512i digit = _mm512_srai_epi32(_mm512_slli_epi32(rest, 24), 24);
                rest = _mm512_srai_epi32(_mm512_sub_epi32(rest, digit), 8);
                sum[d] = _mm512_add_epi32(sum[d], digit);
                __m128i bytes = _mm_shuffle_epi8(_mm512_cvtepi32_epi8(digit), even_odd);
                _mm_storeu_si128((void *)(f.digits + d * k + g * 32 + h * 16), bytes);
            }
        }
        for (int d = 0; d < 3; d++) f.start[g * 3 + d] = -8 * _mm512_reduce_add_epi32(sum[d]);
    }
}

static inline __m512i four_bytes(const int8_t *p) { return _mm512_set1_epi32(*(const int32_t *)p); }

// y [blocks][rows][16] = rows of x times blocks of 16 outputs, which stand `apart` blocks from each other in memory:
// several streams of reading fill the bandwidth better than one. `blocks` and `rows` are constants where inlined.
static inline __attribute__((always_inline)) void dot(
    const Matrix *w, int64_t first, int64_t apart, int blocks, const Fixed *x, int rows, __m512 *y) {
    const __m512i low = _mm512_set1_epi32(0x0F0F0F0F);
    const int64_t k = w->k;
    for (int i = 0; i < blocks * rows; i++) y[i] = _mm512_setzero_ps();
    for (int64_t g = 0; g < k / 32; g++) {
        __m512i sum[4][3];
        for (int i = 0; i < blocks * rows; i++)
            for (int d = 0; d < 3; d++) sum[i][d] = _mm512_set1_epi32(x[i % rows].start[g * 3 + d]);
        for (int o = 0; o < 4; o++)
            for (int b = 0; b < blocks; b++) {
                const uint32_t *words = w->codes + ((first + b * apart) * (k / 8) + g * 4 + o) * 16;
                _mm_prefetch((const char *)words + 4096, _MM_HINT_T1);
                __m512i word = _mm512_loadu_si512(words);
                __m512i even = _mm512_and_si512(word, low), odd = _mm512_and_si512(_mm512_srli_epi32(word, 4), low);
                for (int m = 0; m < rows; m++)
                    for (int d = 0; d < 3; d++) {
                        const int8_t *digits = x[m].digits + d * k + g * 32 + o * 8;
                        __m512i *total = &sum[b * rows + m][d];
                        *total = _mm512_dpbusd_epi32(*total, even, four_bytes(digits));
                        *total = _mm512_dpbusd_epi32(*total, odd, four_bytes(digits + 4));
                    }
            }
        for (int i = 0; i < blocks * rows; i++) {
            __m512 scale = load_scales(w, ((first + i / rows * apart) * (k / 32) + g) * 16);
            __m512 s = _mm512_cvtepi32_ps(sum[i][0]);
            s = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[i][1]), _mm512_set1_ps(256), s);
            s = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[i][2]), _mm512_set1_ps(65536), s);
            y[i] = _mm512_fmadd_ps(s, _mm512_mul_ps(scale, _mm512_set1_ps(x[i % rows].unit[g])), y[i]);
        }
    }
}

// The calling thread's share of y [rows, n] = x W.T, x in fixed point.
static void my_outputs(const Matrix *w, const void *fixed, int64_t rows, bf16 *y) {
    const int streams = rows == 1 ? 4 : rows == 2 ? 2 : 1;
    int64_t from, to;
    my_part(w->n / 16, 1, &from, &to);
    const int64_t apart = (to - from) / streams, rest = from + apart * streams;
    for (int64_t block = from; block < to; block++) {
        if (block == from + apart) block = rest;  // the streams have been through what lies between
        if (block == to) break;
        const int blocks = block < rest ? streams : 1;
        for (int64_t m = 0; m < rows; m += 4) {
            const int now = rows - m < 4 ? rows - m : 4;
            Fixed x[4];
            __m512 sums[4] = {0};
            for (int i = 0; i < now; i++) x[i] = fixed_at(fixed, w->k, m + i);
            switch (blocks * 10 + now) {
                case 41: dot(w, block, apart, 4, x, 1, sums); break;
                case 22: dot(w, block, apart, 2, x, 2, sums); break;
                case 11: dot(w, block, 0, 1, x, 1, sums); break;
                case 12: dot(w, block, 0, 1, x, 2, sums); break;
                case 13: dot(w, block, 0, 1, x, 3, sums); break;
                default: dot(w, block, 0, 1, x, 4, sums);
            }
            for (int i = 0; i < blocks * now; i++)
                store_bf16(y + (m + i % now) * w->n + (block + i / now * apart) * 16, sums[i]);
        }
    }
}

typedef struct { Matrix w; void *fixed; int64_t rows; bf16 *y; } Linear;

static void linear_body(void *call) {
    const Linear *c = call;
    my_outputs(&c->w, c->fixed, c->rows, c->y);
}

// x [rows, k] -> y [rows, n]
void int4_linear(Matrix w, const bf16 *x, int64_t rows, bf16 *y, int threads) {
    Linear call = {w, malloc(rows * fixed_bytes(w.k)), rows, y};
    for (int64_t m = 0; m < rows; m++) to_fixed(x + m * w.k, w.k, fixed_at(call.fixed, w.k, m));
    GOMP_parallel(linear_body, &call, threads, 0);
    free(call.fixed);
}

// ---- Many rows: bfloat16 weights for torch's GEMM, a tile at a time ----

typedef struct { Matrix w; int64_t first, count; bf16 *tile; } Dequantize;

static void dequantize_body(void *call) {
    const Dequantize *c = call;
    const __m512 table = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
    const int64_t k = c->w.k;
    int64_t from, to;
    my_part(c->count, 32, &from, &to);
    for (int64_t column = from; column < to; column += 32) {
        int64_t left = (c->first + column) / 16, right = left + 1;  // two blocks fill a cache line of the tile
        for (int64_t octet = 0; octet < k / 8; octet++) {
            __m512i word[2] = {_mm512_loadu_si512(c->w.codes + (left * k / 8 + octet) * 16),
                               _mm512_loadu_si512(c->w.codes + (right * k / 8 + octet) * 16)};
            __m512 scale[2] = {load_scales(&c->w, (left * (k / 32) + octet / 4) * 16),
                               load_scales(&c->w, (right * (k / 32) + octet / 4) * 16)};
            for (int i = 0; i < 8; i++) {
                __m512 low = _mm512_permutexvar_ps(_mm512_srli_epi32(word[0], 4 * i), table);
                __m512 high = _mm512_permutexvar_ps(_mm512_srli_epi32(word[1], 4 * i), table);
                __m512bh both = _mm512_cvtne2ps_pbh(_mm512_mul_ps(high, scale[1]), _mm512_mul_ps(low, scale[0]));
                _mm512_storeu_si512(c->tile + (octet * 8 + i) * c->count + column, (__m512i)both);
            }
        }
    }
}

// Outputs first .. first + count, multiples of 32, as bfloat16 columns: tile [k, count]
void int4_dequantize(Matrix w, int64_t first, int64_t count, bf16 *tile, int threads) {
    Dequantize call = {w, first, count, tile};
    GOMP_parallel(dequantize_body, &call, threads, 0);
}

// ---- Many rows, where there is no AMX: bfloat16 weights in the first cache ----

enum { PANEL = 256, TALL = 43 * ROWS };  // inputs to a panel, rows to a unit of work at most

typedef struct { Matrix w; const uint32_t *x; uint32_t *packed; int64_t rows; bf16 *y; } Product;

// 32 outputs, inputs k0 .. k0 + count: panel [count / 2, 32], a word holding the weights of two consecutive inputs
static void fill_panel(const Matrix *w, int64_t block, int64_t k0, int64_t count, uint32_t *panel) {
    const __m512 table = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
    for (int64_t b = block; b < block + 2; b++, panel += 16)
        for (int64_t octet = k0 / 8; octet < (k0 + count) / 8; octet++) {
            __m512i word = _mm512_loadu_si512(w->codes + (b * (w->k / 8) + octet) * 16);
            __m512 scale = load_scales(w, (b * (w->k / 32) + octet / 4) * 16);
            for (int i = 0; i < 4; i++, word = _mm512_srli_epi32(word, 8)) {
                __m512 even = _mm512_mul_ps(_mm512_permutexvar_ps(word, table), scale);
                __m512 odd = _mm512_mul_ps(_mm512_permutexvar_ps(_mm512_srli_epi32(word, 4), table), scale);
                __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(even));
                __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(odd));
                __m512i both = _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
                _mm512_storeu_si512(panel + ((octet - k0 / 8) * 4 + i) * 32, both);
            }
        }
}

// ROWS rows at a time: their sums fill 24 of the 32 registers.
// sums [ROWS, 32] += x [pairs, ROWS] times panel [pairs, 32], both of pairs of bfloat16
static void multiply(const uint32_t *x, const uint32_t *panel, int64_t pairs, float *sums) {
    __m512 s[ROWS][2];
    for (int r = 0; r < ROWS; r++)
        for (int h = 0; h < 2; h++) s[r][h] = _mm512_loadu_ps(sums + r * 32 + h * 16);
    for (int64_t p = 0; p < pairs; p++, x += ROWS, panel += 32) {
        __m512bh left = (__m512bh)_mm512_loadu_si512(panel), right = (__m512bh)_mm512_loadu_si512(panel + 16);
        for (int r = 0; r < ROWS; r++) {
            __m512bh pair = (__m512bh)_mm512_set1_epi32(x[r]);
            s[r][0] = _mm512_dpbf16_ps(s[r][0], pair, left);
            s[r][1] = _mm512_dpbf16_ps(s[r][1], pair, right);
        }
    }
    for (int r = 0; r < ROWS; r++)
        for (int h = 0; h < 2; h++) _mm512_storeu_ps(sums + r * 32 + h * 16, s[r][h]);
}

static void product_body(void *call) {
    const Product *c = call;
    const int64_t k = c->w.k, n = c->w.n, groups = (c->rows + ROWS - 1) / ROWS;
    const int64_t parts = (groups * ROWS + TALL - 1) / TALL, tall = (groups + parts - 1) / parts;  // in groups
    int64_t from, to;
    my_part(groups, 1, &from, &to);
    for (int64_t g = from; g < to; g++)
        for (int64_t p = 0; p < k / 2; p++)
            for (int64_t r = 0; r < ROWS; r++)
                c->packed[(g * (k / 2) + p) * ROWS + r] =
                    g * ROWS + r < c->rows ? c->x[(g * ROWS + r) * (k / 2) + p] : 0;
    GOMP_barrier();

    uint32_t panel[PANEL / 2 * 32] __attribute__((aligned(64)));
    float sums[TALL * 32] __attribute__((aligned(64)));
    my_part(n / 32 * parts, 1, &from, &to);
    for (int64_t unit = from; unit < to; unit++) {
        int64_t column = unit / parts * 32, first = unit % parts * tall;
        int64_t last = first + tall < groups ? first + tall : groups;
        __builtin_memset(sums, 0, sizeof sums);
        for (int64_t k0 = 0; k0 < k; k0 += PANEL) {
            int64_t count = k - k0 < PANEL ? k - k0 : PANEL;
            fill_panel(&c->w, column / 16, k0, count, panel);
            for (int64_t g = first; g < last; g++)
                multiply(c->packed + (g * (k / 2) + k0 / 2) * ROWS, panel, count / 2, sums + (g - first) * ROWS * 32);
        }
        for (int64_t row = first * ROWS; row < last * ROWS && row < c->rows; row++) {
            const float *sum = sums + (row - first * ROWS) * 32;
            __m512bh both = _mm512_cvtne2ps_pbh(_mm512_load_ps(sum + 16), _mm512_load_ps(sum));
            _mm512_storeu_si512(c->y + row * n + column, (__m512i)both);
        }
    }
}

// x [rows, k] -> y [rows, n], n a multiple of 32; the weights rounded to bfloat16, the sums in float32. `packed` has
// room for x with its rows filled up to a multiple of ROWS.
void int4_product(Matrix w, const bf16 *x, int64_t rows, void *packed, bf16 *y, int threads) {
    Product call = {w, (const uint32_t *)x, packed, rows, y};
    GOMP_parallel(product_body, &call, threads, 0);
}

// ---- One decoder layer for one token ----

typedef struct {
    Matrix q, k, v, o, gate, up, down;
    const bf16 *norms[6];  // input, q, k, post_attention, pre_feedforward, post_feedforward
    int32_t heads, kv_heads, head_dim;
    float eps, scaling;
} Layer;

typedef struct {
    const Layer *layer;
    const bf16 *hidden, *cos, *sin;  // [width], [head_dim], [head_dim]
    bf16 *keys, *values;             // [kv_heads, length, head_dim], the last row still to be written
    int64_t head_stride, length;
    const uint8_t *mask;             // [length], or NULL: attend to all
    bf16 *out;                       // [width]
    bf16 *q, *k, *v, *attended, *mixed, *inner, *up, *update;
    float *scores;                   // [heads, padded]
    int64_t padded;                  // length, rounded up to 16
} Step;

// As Gemma3RMSNorm: in float32, times 1 + weight, rounded once.
static void rms_norm(const bf16 *x, const bf16 *weight, int64_t n, float eps, bf16 *y) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t i = 0; i < n; i += 16) sum = _mm512_fmadd_ps(load_bf16(x + i), load_bf16(x + i), sum);
    __m512 scale = _mm512_set1_ps(1 / sqrtf(_mm512_reduce_add_ps(sum) / n + eps));
    for (int64_t i = 0; i < n; i += 16) {
        __m512 gain = _mm512_add_ps(load_bf16(weight + i), _mm512_set1_ps(1));
        store_bf16(y + i, _mm512_mul_ps(_mm512_mul_ps(load_bf16(x + i), scale), gain));
    }
}

static void add(const bf16 *x, const bf16 *y, int64_t n, bf16 *sum) {
    for (int64_t i = 0; i < n; i += 16) store_bf16(sum + i, _mm512_add_ps(load_bf16(x + i), load_bf16(y + i)));
}

// y = gelu(gate) * up
static void gated(const bf16 *gate, const bf16 *up, int64_t from, int64_t to, bf16 *y) {
    for (int64_t i = from; i < to; i += 16) {
        __m512 gelu = round_bf16(gelu_tanh(load_bf16(gate + i)));
        store_bf16(y + i, _mm512_mul_ps(gelu, load_bf16(up + i)));
    }
}

// The rotary embedding: x * cos + rotate_half(x) * sin.
static void rotate(const bf16 *x, const bf16 *cos, const bf16 *sin, int64_t n, bf16 *y) {
    for (int64_t i = 0; i < n / 2; i += 16) {
        __m512 a = load_bf16(x + i), b = load_bf16(x + n / 2 + i);
        store_bf16(y + i, _mm512_fmsub_ps(a, load_bf16(cos + i), _mm512_mul_ps(b, load_bf16(sin + i))));
        store_bf16(y + n / 2 + i, _mm512_fmadd_ps(b, load_bf16(cos + n / 2 + i),
                                                  _mm512_mul_ps(a, load_bf16(sin + n / 2 + i))));
    }
}

// The calling thread's share of scores [heads, padded] = scaling * q . keys, by positions; -1e30 where masked.
static void my_scores(const Step *s) {
    const Layer *l = s->layer;
    const int64_t n = l->head_dim, group = l->heads / l->kv_heads;
    int64_t from, to;
    my_part(s->padded, 16, &from, &to);
    for (int64_t h = 0; h < l->heads; h++)
        for (int64_t at = from; at < to; at++) {
            const bf16 *q = s->q + h * n, *key = s->keys + h / group * s->head_stride + at * n;
            float *score = s->scores + h * s->padded + at;
            *score = -1e30f;
            if (at >= s->length || (s->mask && !s->mask[at])) continue;
            __m512 sum = _mm512_setzero_ps();
            for (int64_t i = 0; i < n; i += 32)
                sum = _mm512_dpbf16_ps(sum, (__m512bh)_mm512_loadu_si512(q + i), (__m512bh)_mm512_loadu_si512(key + i));
            *score = _mm512_reduce_add_ps(sum) * l->scaling;
        }
}

static void softmax(float *x, int64_t n) {
    __m512 largest = _mm512_loadu_ps(x), sum = _mm512_setzero_ps();
    for (int64_t i = 16; i < n; i += 16) largest = _mm512_max_ps(largest, _mm512_loadu_ps(x + i));
    largest = _mm512_set1_ps(_mm512_reduce_max_ps(largest));
    for (int64_t i = 0; i < n; i += 16) {
        __m512 e = exp_ps(_mm512_sub_ps(_mm512_loadu_ps(x + i), largest));
        sum = _mm512_add_ps(sum, e);
        _mm512_storeu_ps(x + i, e);
    }
    __m512 inverse = _mm512_set1_ps(1 / _mm512_reduce_add_ps(sum));
    for (int64_t i = 0; i < n; i += 16) _mm512_storeu_ps(x + i, _mm512_mul_ps(_mm512_loadu_ps(x + i), inverse));
}

// 32 columns of scores . values for so many heads of one group; `heads` is a constant wherever this is inlined.
static inline __attribute__((always_inline)) void mix(const Step *s, int64_t first, int64_t column, int heads) {
    const int64_t n = s->layer->head_dim, group = s->layer->heads / s->layer->kv_heads;
    const bf16 *value = s->values + first / group * s->head_stride + column;
    __m512 sum[4][2];
    for (int h = 0; h < heads; h++) sum[h][0] = sum[h][1] = _mm512_setzero_ps();
    for (int64_t at = 0; at < s->length; at++, value += n) {
        __m512 low = load_bf16(value), high = load_bf16(value + 16);
        _mm_prefetch((const char *)(value + 16 * n), _MM_HINT_T0);  // a stride that no hardware prefetcher follows
        for (int h = 0; h < heads; h++) {
            __m512 weight = _mm512_set1_ps(s->scores[(first + h) * s->padded + at]);
            sum[h][0] = _mm512_fmadd_ps(weight, low, sum[h][0]);
            sum[h][1] = _mm512_fmadd_ps(weight, high, sum[h][1]);
        }
    }
    for (int h = 0; h < heads; h++)
        for (int half = 0; half < 2; half++)
            store_bf16(s->attended + (first + h) * n + column + half * 16, sum[h][half]);
}

// The calling thread's share of the attended values, by columns of 32.
static void my_mixture(const Step *s) {
    const Layer *l = s->layer;
    const int64_t columns = l->head_dim / 32, group = l->heads / l->kv_heads;
    int64_t from, to;
    my_part(l->kv_heads * columns, 1, &from, &to);
    for (int64_t unit = from; unit < to; unit++) {
        int64_t head = unit / columns * group, end = head + group, column = unit % columns * 32;
        for (; head + 4 <= end; head += 4) mix(s, head, column, 4);
        for (; head + 2 <= end; head += 2) mix(s, head, column, 2);
        if (head < end) mix(s, head, column, 1);
    }
}

static void decoder_layer_body(void *step) {
    const Step *s = step;
    const Layer *l = s->layer;
    const int64_t width = l->q.k, n = l->head_dim;
    const int64_t widest = l->down.k > l->o.k ? l->down.k : l->o.k;
    bf16 x[width], residual[width];
    char memory[fixed_bytes(width > widest ? width : widest)];
    int64_t from, to;

    rms_norm(s->hidden, l->norms[0], width, l->eps, x);
    to_fixed(x, width, fixed_at(memory, width, 0));
    my_outputs(&l->q, memory, 1, s->q);
    my_outputs(&l->k, memory, 1, s->k);
    my_outputs(&l->v, memory, 1, s->v);
    GOMP_barrier();

    my_part(l->heads + l->kv_heads, 1, &from, &to);
    for (int64_t h = from; h < to; h++) {
        bf16 normed[n];
        if (h < l->heads) {
            rms_norm(s->q + h * n, l->norms[1], n, l->eps, normed);
            rotate(normed, s->cos, s->sin, n, s->q + h * n);
        } else {
            int64_t kv = h - l->heads, at = kv * s->head_stride + (s->length - 1) * n;
            rms_norm(s->k + kv * n, l->norms[2], n, l->eps, normed);
            rotate(normed, s->cos, s->sin, n, s->keys + at);
            __builtin_memcpy(s->values + at, s->v + kv * n, n * sizeof(bf16));
        }
    }
    GOMP_barrier();

    my_scores(s);
    GOMP_barrier();
    my_part(l->heads, 1, &from, &to);
    for (int64_t h = from; h < to; h++) softmax(s->scores + h * s->padded, s->padded);
    GOMP_barrier();
    my_mixture(s);
    GOMP_barrier();

    to_fixed(s->attended, l->o.k, fixed_at(memory, l->o.k, 0));
    my_outputs(&l->o, memory, 1, s->mixed);
    GOMP_barrier();

    rms_norm(s->mixed, l->norms[3], width, l->eps, x);
    add(x, s->hidden, width, residual);
    rms_norm(residual, l->norms[4], width, l->eps, x);
    to_fixed(x, width, fixed_at(memory, width, 0));
    my_outputs(&l->gate, memory, 1, s->inner);
    my_outputs(&l->up, memory, 1, s->up);
    my_part(l->gate.n / 16, 1, &from, &to);  // what this thread has just written
    gated(s->inner, s->up, from * 16, to * 16, s->inner);
    GOMP_barrier();

    to_fixed(s->inner, l->down.k, fixed_at(memory, l->down.k, 0));
    my_outputs(&l->down, memory, 1, s->update);
    GOMP_barrier();

    if (omp_get_thread_num() == 0) {
        rms_norm(s->update, l->norms[5], width, l->eps, x);
        add(x, residual, width, s->out);
    }
}

// hidden [width] -> out [width]; appends to keys and values. Rounds to bfloat16 where transformers' Gemma 3 does.
void int4_decoder_layer(const Layer *layer, const bf16 *hidden, const bf16 *cos, const bf16 *sin, bf16 *keys,
                        bf16 *values, int64_t head_stride, int64_t length, const uint8_t *mask, bf16 *out,
                        int threads) {
    Step s = {.layer = layer, .hidden = hidden, .cos = cos, .sin = sin, .keys = keys, .values = values,
              .head_stride = head_stride, .length = length, .mask = mask, .out = out,
              .padded = (length + 15) / 16 * 16};
    const int64_t width = layer->q.k, q = layer->q.n, kv = layer->k.n;
    bf16 *memory = malloc((2 * q + 2 * kv + 2 * width + 2 * layer->gate.n) * sizeof(bf16));
    s.scores = malloc(layer->heads * s.padded * sizeof(float));
    s.q = memory;
    s.k = s.q + q;
    s.v = s.k + kv;
    s.attended = s.v + kv;
    s.mixed = s.attended + q;
    s.update = s.mixed + width;
    s.inner = s.update + width;
    s.up = s.inner + layer->gate.n;
    GOMP_parallel(decoder_layer_body, &s, threads, 0);
    free(s.scores);
    free(memory);
}

// ---- Small operations on many rows ----

typedef struct { const bf16 *x, *weight; int64_t rows, n; float eps; bf16 *y; } Norm;

static void rms_norm_body(void *call) {
    const Norm *c = call;
    int64_t from, to;
    my_part(c->rows, 1, &from, &to);
    for (int64_t row = from; row < to; row++) rms_norm(c->x + row * c->n, c->weight, c->n, c->eps, c->y + row * c->n);
}

// x [rows, n] -> y [rows, n]; n a multiple of 16
void int4_rms_norm(const bf16 *x, const bf16 *weight, int64_t rows, int64_t n, float eps, bf16 *y, int threads) {
    Norm call = {x, weight, rows, n, eps, y};
    GOMP_parallel(rms_norm_body, &call, threads, 0);
}

typedef struct { const bf16 *gate, *up; int64_t n; bf16 *y; } Gated;

static void gated_body(void *call) {
    const Gated *c = call;
    int64_t from, to;
    my_part(c->n, 16, &from, &to);
    gated(c->gate, c->up, from, to, c->y);
}

// y [n] = gelu(gate) * up; n a multiple of 16
void int4_gated(const bf16 *gate, const bf16 *up, int64_t n, bf16 *y, int threads) {
    Gated call = {gate, up, n, y};
    GOMP_parallel(gated_body, &call, threads, 0);
}

// ---- Loading ----

// Asks for pages of 2 MB inside this memory. Refusal does no harm.
void int4_huge_pages(char *memory, int64_t bytes) {
    const uintptr_t huge = 1 << 21;
    uintptr_t from = ((uintptr_t)memory + huge - 1) / huge * huge, to = ((uintptr_t)memory + bytes) / huge * huge;
    if (from < to) madvise((void *)from, to - from, MADV_HUGEPAGE);
}

typedef struct { const uint32_t *qweight; uint32_t *codes; int64_t n, k; } PackAwq;

typedef uint32_t lanes __attribute__((vector_size(64)));

static void pack_awq_body(void *call) {
    const PackAwq *c = call;
    static const int order[8] = {0, 2, 4, 6, 1, 3, 5, 7};
    static const uint32_t low[5] = {0, 0x0F0F0F0F, 0x00FF00FF, 0, 0x0000FFFF};
    int64_t from, to, octets = c->k / 8, words = c->n / 8;
    my_part(words, 2, &from, &to);
    for (int64_t j = from; j < to; j += 16) {
        int64_t wide = to - j < 16 ? to - j : 16;
        for (int64_t o = 0; o < octets; o++) {
            lanes v[8] = {0};
            for (int t = 0; t < 8; t++) {
                const uint32_t *row = c->qweight + (o * 8 + t) * words + j;
                __builtin_prefetch(row + 32 * words);
                __builtin_memcpy(&v[t], row, wide * 4);
            }
            for (int h = 4; h; h /= 2)  // transposes 8 x 8 nibbles in each lane: exchanges halves, quarters, eighths
                for (int t = 0; t < 8; t++)
                    if (!(t & h)) {
                        lanes change = (v[t] >> 4 * h ^ v[t + h]) & low[h];
                        v[t + h] ^= change;
                        v[t] ^= change << 4 * h;
                    }
            for (int64_t lane = 0; lane < wide; lane++) {
                uint32_t *block = c->codes + ((j + lane) / 2 * octets + o) * 16 + lane % 2 * 8;
                for (int i = 0; i < 8; i++) block[order[i]] = v[i][lane];
            }
        }
    }
}

// AWQ words [k, n / 8], in which nibble i is output 8 * j + order[i] -> codes of a Matrix.
void int4_pack_awq(const uint32_t *qweight, uint32_t *codes, int64_t n, int64_t k, int threads) {
    PackAwq call = {qweight, codes, n, k};
    GOMP_parallel(pack_awq_body, &call, threads, 0);
}
"""


class Matrix(ctypes.Structure):
    """The C struct of this name. The tensors must outlive it."""

    _fields_ = (
        ("codes", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("scale_type", ctypes.c_int32),
        ("n", ctypes.c_int32),
        ("k", ctypes.c_int32),
    )


class Layer(ctypes.Structure):
    """The C struct of this name."""

    _fields_ = (
        *((name, Matrix) for name in ("q", "k", "v", "o", "gate", "up", "down")),
        ("norms", ctypes.c_void_p * 6),
        ("heads", ctypes.c_int32),
        ("kv_heads", ctypes.c_int32),
        ("head_dim", ctypes.c_int32),
        ("eps", ctypes.c_float),
        ("scaling", ctypes.c_float),
    )


_POINTER, _INT64, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
SIGNATURES = {
    "int4_linear": (Matrix, _POINTER, _INT64, _POINTER, _INT),
    "int4_product": (Matrix, _POINTER, _INT64, _POINTER, _POINTER, _INT),
    "int4_dequantize": (Matrix, _INT64, _INT64, _POINTER, _INT),
    "int4_decoder_layer": (_POINTER,) * 6 + (_INT64, _INT64, _POINTER, _POINTER, _INT),
    "int4_rms_norm": (_POINTER, _POINTER, _INT64, _INT64, ctypes.c_float, _POINTER, _INT),
    "int4_gated": (_POINTER, _POINTER, _INT64, _POINTER, _INT),
    "int4_pack_awq": (_POINTER, _POINTER, _INT64, _INT64, _INT),
    "int4_huge_pages": (_POINTER, _INT64),
}


class Unavailable(Exception):
    """Why the kernels cannot be had on this machine."""


@functools.cache
def library() -> ctypes.CDLL | None:
    """The kernels, compiled on the first call. None where that fails: one warning then says why."""
    try:
        _check_cpu()
        loaded = ctypes.CDLL(str(_compiled()))
    except (Unavailable, OSError, subprocess.SubprocessError) as error:
        logger.warning(f"int4 CPU kernels not available, PyTorch's own int4 operator is used instead: {error}")
        return None
    for name, arguments in SIGNATURES.items():
        function = getattr(loaded, name)
        function.argtypes, function.restype = arguments, None
    return loaded


@functools.cache
def has_amx() -> bool:
    """Whether torch's bfloat16 GEMM has matrix units to run on, which no kernel here uses."""
    return "amx_bf16" in _cpu_flags()


def _cpu_flags() -> list[str]:
    """As Linux lists them for x86; elsewhere none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    return next((line.split() for line in lines if line.startswith("flags")), [])


def _check_cpu() -> None:
    flags = _cpu_flags()
    if not flags:
        raise Unavailable("they are for Linux on x86")
    missing = [name for name in CPU_FEATURES if name not in flags]
    if missing:
        raise Unavailable(f"this CPU lacks {', '.join(missing)}")


def _compiled() -> Path:
    """Path of the compiled library, from the cache or made now."""
    compiler = shlex.split(os.environ.get("CC", "")) or [shutil.which("cc") or shutil.which("gcc")]
    if compiler[0] is None:
        raise Unavailable("no C compiler (cc or gcc; the environment variable CC names another)")
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=True, timeout=60).stdout
    made_from = "\0".join([SOURCE, *FLAGS, *compiler, version])
    path = _cache_folder() / f"kernel-{hashlib.sha256(made_from.encode()).hexdigest()[:32]}.so"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:  # then renamed: never seen half-written
            made = Path(scratch) / path.name
            command = [*compiler, *FLAGS, "-x", "c", "-", "-o", str(made)]
            run = subprocess.run(command, input=SOURCE, capture_output=True, text=True, timeout=300)
            if run.returncode:
                raise Unavailable(f"{shlex.join(command)} failed: {run.stderr.strip()[-500:]}")
            os.replace(made, path)
    return path


def _cache_folder() -> Path:
    try:
        root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError as error:  # a user without a home
        raise Unavailable(f"{error} Set XDG_CACHE_HOME.") from error
    folder = Path(root) / "gemma3-int4" / "kernels"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise Unavailable(f"{folder} belongs to, or can be written by, someone else; remove it or set XDG_CACHE_HOME")
    return folder
