# Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
"""The int4 kernels for x86 CPUs, in C, compiled on the user's machine when first needed.

What this file offers:
    SOURCE     all of the C code
    library    that code, compiled and loaded: a ctypes.CDLL; or None, with one warning that says why not
    has_amx    whether torch's GEMM beats these kernels for many rows

They are for AVX512 with VNNI and BF16 (vectors of 16 numbers), or else for AVX2 (of 8). What the two do each in its own
way stands first, under names that they share; but for the innermost steps of the products, the rest is one text.

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

# Best first. Features as /proc/cpuinfo spells them; the compiler's flags are the same without the underscore.
INSTRUCTION_SETS = {
    "AVX512": ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni", "avx512_bf16", "fma"),
    "AVX2": ("avx2", "fma", "f16c"),
}
FLAGS = ("-O3", "-std=gnu11", "-shared", "-fPIC")

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

// ---- Vectors of LANES numbers; +, -, *, / and shifts on them are the compiler's own ----

#ifdef AVX512

enum { LANES = 16 };
typedef __m512 floats;
typedef int32_t ints __attribute__((vector_size(64)));

static inline floats load(const float *p) { return _mm512_loadu_ps(p); }
static inline void store(float *p, floats x) { _mm512_storeu_ps(p, x); }
static inline ints load_words(const uint32_t *p) { return (ints)_mm512_loadu_si512(p); }
static inline floats all(float x) { return _mm512_set1_ps(x); }
static inline floats fmadd(floats a, floats b, floats c) { return _mm512_fmadd_ps(a, b, c); }
static inline floats smaller(floats a, floats b) { return _mm512_min_ps(a, b); }
static inline floats larger(floats a, floats b) { return _mm512_max_ps(a, b); }
static inline ints larger_ints(ints a, ints b) { return (ints)_mm512_max_epi32((__m512i)a, (__m512i)b); }
static inline float total(floats x) { return _mm512_reduce_add_ps(x); }
static inline float largest(floats x) { return _mm512_reduce_max_ps(x); }
static inline int32_t total_int(ints x) { return _mm512_reduce_add_epi32((__m512i)x); }
static inline int32_t largest_int(ints x) { return _mm512_reduce_max_epi32((__m512i)x); }
static inline ints rounded(floats x) { return (ints)_mm512_cvtps_epi32(x); }
static inline floats whole(floats x) { return _mm512_roundscale_ps(x, 0); }
static inline floats times_2_to(floats x, floats power) { return _mm512_scalef_ps(x, power); }

static inline floats load_bf16(const bf16 *p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)p)), 16));
}

static inline void store_bf16(bf16 *p, floats x) { _mm256_storeu_si256((void *)p, (__m256i)_mm512_cvtneps_pbh(x)); }

static inline void store_two_bf16(bf16 *p, floats x, floats next) {
    _mm512_storeu_si512(p, (__m512i)_mm512_cvtne2ps_pbh(next, x));
}

static inline floats load_f16(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const void *)p)); }

static inline floats round_bf16(floats x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(x)), 16));
}

// Nibble i of each word, less 8.
static inline floats code(ints words, int i) {
    const floats table = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
    return _mm512_permutexvar_ps(_mm512_srli_epi32((__m512i)words, 4 * i), table);
}

// The low bytes of x; of each 8 first the even ones, then the odd ones.
static inline void store_bytes(int8_t *p, ints x) {
    const __m128i even_odd = _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
    _mm_storeu_si128((void *)p, _mm_shuffle_epi8(_mm512_cvtepi32_epi8((__m512i)x), even_odd));
}

static inline float dot_bf16(const bf16 *x, const bf16 *y, int64_t n) {
    floats sum = all(0);
    for (int64_t i = 0; i < n; i += 32)
        sum = _mm512_dpbf16_ps(sum, (__m512bh)_mm512_loadu_si512(x + i), (__m512bh)_mm512_loadu_si512(y + i));
    return total(sum);
}

#else  // AVX2, FMA and F16C

enum { LANES = 8 };
typedef __m256 floats;
typedef int32_t ints __attribute__((vector_size(32)));

static inline floats load(const float *p) { return _mm256_loadu_ps(p); }
static inline void store(float *p, floats x) { _mm256_storeu_ps(p, x); }
static inline ints load_words(const uint32_t *p) { return (ints)_mm256_loadu_si256((const void *)p); }
static inline floats all(float x) { return _mm256_set1_ps(x); }
static inline floats fmadd(floats a, floats b, floats c) { return _mm256_fmadd_ps(a, b, c); }
static inline floats smaller(floats a, floats b) { return _mm256_min_ps(a, b); }
static inline floats larger(floats a, floats b) { return _mm256_max_ps(a, b); }
static inline ints larger_ints(ints a, ints b) { return (ints)_mm256_max_epi32((__m256i)a, (__m256i)b); }
static inline ints rounded(floats x) { return (ints)_mm256_cvtps_epi32(x); }
static inline floats whole(floats x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline floats times_2_to(floats x, floats power) { return x * (floats)((rounded(power) + 127) << 23); }

static inline float total(floats x) {
    __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_add_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
}

static inline float largest(floats x) {
    __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_max_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
}

static inline int32_t total_int(ints x) {
    __m128i y = _mm_add_epi32(_mm256_castsi256_si128((__m256i)x), _mm256_extracti128_si256((__m256i)x, 1));
    y = _mm_add_epi32(y, _mm_shuffle_epi32(y, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(y, _mm_shuffle_epi32(y, 0xB1)));
}

static inline int32_t largest_int(ints x) {
    __m128i y = _mm_max_epi32(_mm256_castsi256_si128((__m256i)x), _mm256_extracti128_si256((__m256i)x, 1));
    y = _mm_max_epi32(y, _mm_shuffle_epi32(y, 0x4E));
    return _mm_cvtsi128_si32(_mm_max_epi32(y, _mm_shuffle_epi32(y, 0xB1)));
}

static inline floats load_bf16(const bf16 *p) {
    return (floats)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)p)), 16);
}

// To the nearest bfloat16, of two as near the even one; in the upper half of each number.
static inline floats round_bf16(floats x) {
    __m256i bits = (__m256i)x, odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    bits = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
    bits = _mm256_and_si256(bits, _mm256_set1_epi32(0xFFFF0000));
    return _mm256_blendv_ps((floats)bits, all(NAN), _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
}

static inline void store_two_bf16(bf16 *p, floats x, floats next) {
    __m256i a = _mm256_srli_epi32((__m256i)round_bf16(x), 16), b = _mm256_srli_epi32((__m256i)round_bf16(next), 16);
    _mm256_storeu_si256((void *)p, _mm256_permute4x64_epi64(_mm256_packus_epi32(a, b), 0xD8));
}

static inline void store_bf16(bf16 *p, floats x) {
    __m256i bits = _mm256_srli_epi32((__m256i)round_bf16(x), 16);
    bits = _mm256_permute4x64_epi64(_mm256_packus_epi32(bits, bits), 0xD8);
    _mm_storeu_si128((void *)p, _mm256_castsi256_si128(bits));
}

static inline floats load_f16(const uint16_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const void *)p)); }

// Nibble i of each word, less 8.
static inline floats code(ints words, int i) { return _mm256_cvtepi32_ps((__m256i)((words >> 4 * i & 15) - 8)); }

// The low bytes of x: first the even ones, then the odd ones.
static inline void store_bytes(int8_t *p, ints x) {
    const __m256i even_odd = _mm256_setr_epi8(0, 8, -1, -1, 4, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,  //
                                              -1, -1, 0, 8, -1, -1, 4, 12, -1, -1, -1, -1, -1, -1, -1, -1);
    __m256i bytes = _mm256_shuffle_epi8((__m256i)x, even_odd);
    _mm_storel_epi64((void *)p, _mm_or_si128(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1)));
}

static inline float dot_bf16(const bf16 *x, const bf16 *y, int64_t n) {
    floats sum = all(0), next = all(0);
    for (int64_t i = 0; i < n; i += 16) {
        sum = fmadd(load_bf16(x + i), load_bf16(y + i), sum);
        next = fmadd(load_bf16(x + i + 8), load_bf16(y + i + 8), next);
    }
    return total(sum + next);
}

#endif

enum { WIDTH = 2 * LANES };  // two vectors side by side, as the loops below take them

static inline const uint32_t *words_at(const Matrix *w, int64_t output, int64_t octet) {
    return w->codes + (output / 16 * (w->k / 8) + octet) * 16 + output % 16;
}

static inline floats scales_at(const Matrix *w, int64_t output, int64_t group) {
    const int64_t at = (output / 16 * (w->k / 32) + group) * 16 + output % 16;
    if (w->scale_type == 2) return load((const float *)w->scales + at);
    const uint16_t *halves = (const uint16_t *)w->scales + at;
    return w->scale_type == 0 ? load_bf16(halves) : load_f16(halves);
}

static inline floats exp_ps(floats x) {  // 2^(power + part), the latter by its Taylor series: good to 2e-7
    static const float c[7] = {1, 0.693147181f, 0.240226507f, 0.0555041087f, 0.00961812911f, 0.00133335581f,
                               0.000154035304f};
    x = smaller(larger(x, all(-87)), all(88));
    x = x * all(1.44269504f);
    floats power = whole(x), part = x - power, y = all(c[6]);
    for (int i = 5; i >= 0; i--) y = fmadd(y, part, all(c[i]));
    return times_2_to(y, power);
}

static inline floats gelu_tanh(floats x) {  // x / (1 + exp(-2 z)), z = sqrt(2 / pi) * (x + 0.044715 x^3)
    floats cubic = fmadd(x * x, all(0.044715f), all(1));
    return x / (exp_ps(x * cubic * all(-1.59576912f)) + all(1));
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

static float power_of_2(int32_t exponent) {
    const int32_t bits = (exponent + 127) << 23;
    float power;
    __builtin_memcpy(&power, &bits, 4);
    return power;
}

static void to_fixed(const bf16 *x, int64_t k, Fixed f) {
    enum { PARTS = 32 / LANES };
    for (int64_t g = 0; g < k / 32; g++) {
        floats part[PARTS];
        ints bits = {0}, sum[3] = {{0}};
        for (int p = 0; p < PARTS; p++) {
            part[p] = load_bf16(x + g * 32 + p * LANES);
            bits = larger_ints(bits, (ints)part[p] & 0x7FFFFFFF);
        }
        int32_t exponent = largest_int(bits) >> 23;  // biased; 255: infinite or NaN
        if (exponent < 30) exponent = 30;
        f.unit[g] = exponent == 255 ? NAN : power_of_2(exponent - 127 - 21);
        const floats per_unit = all(power_of_2(127 + 21 - exponent));
        for (int p = 0; p < PARTS; p++) {
            ints rest = rounded(part[p] * per_unit);
            for (int d = 0; d < 3; d++) {
                ints digit = rest << 24 >> 24;
                rest = (rest - digit) >> 8;
                sum[d] += digit;
                store_bytes(f.digits + d * k + g * 32 + p * LANES, digit);
            }
        }
        for (int d = 0; d < 3; d++) f.start[g * 3 + d] = -8 * total_int(sum[d]);
    }
}

// `dot`: y [blocks][rows][16] = rows of x times blocks of 16 outputs, which stand `apart` blocks from each other in
// memory: with AVX512 several streams of reading fill the bandwidth better than one. `blocks` and `rows` are constants
// where it is inlined; with AVX2 both are one. AT_ONCE: rows at most.

#ifdef AVX512

enum { AT_ONCE = 4 };

static inline __m512i four_bytes(const int8_t *p) { return _mm512_set1_epi32(*(const int32_t *)p); }

static inline __attribute__((always_inline)) void dot(
    const Matrix *w, int64_t first, int64_t apart, int blocks, const Fixed *x, int rows, floats *y) {
    const __m512i low = _mm512_set1_epi32(0x0F0F0F0F);
    const int64_t k = w->k;
    for (int i = 0; i < blocks * rows; i++) y[i] = all(0);
    for (int64_t g = 0; g < k / 32; g++) {
        __m512i sum[4][3];
        for (int i = 0; i < blocks * rows; i++)
            for (int d = 0; d < 3; d++) sum[i][d] = _mm512_set1_epi32(x[i % rows].start[g * 3 + d]);
        for (int o = 0; o < 4; o++)
            for (int b = 0; b < blocks; b++) {
                const uint32_t *words = words_at(w, (first + b * apart) * 16, g * 4 + o);
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
            floats scale = scales_at(w, (first + i / rows * apart) * 16, g);
            floats s = _mm512_cvtepi32_ps(sum[i][0]);
            s = fmadd(_mm512_cvtepi32_ps(sum[i][1]), all(256), s);
            s = fmadd(_mm512_cvtepi32_ps(sum[i][2]), all(65536), s);
            y[i] = fmadd(s, scale * all(x[i % rows].unit[g]), y[i]);
        }
    }
}

#else

enum { AT_ONCE = 1 };

static inline __m256i four_bytes(const int8_t *p) { return _mm256_set1_epi32(*(const int32_t *)p); }

// A lane of 16 bits adds up 16 products of a group: 16 * 15 * 128 < 2^15. All digits and the offset together come to
// 2^30 at most (22 bits of x, 8 of 32 codes less 8); what overflows on the way there comes back.
static inline void dot(const Matrix *w, int64_t first, const Fixed *x, floats *y) {
    const __m256i low = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1), n256 = _mm256_set1_epi16(256);
    const int64_t k = w->k;
    y[0] = y[1] = all(0);
    for (int64_t g = 0; g < k / 32; g++) {
        const uint32_t *words = words_at(w, first * 16, g * 4);
        __m256i sum[2][3] = {{_mm256_setzero_si256()}};
#pragma GCC unroll 1  // unrolled, the sums do not stay in registers
        for (int o = 0; o < 4; o++) {
            _mm_prefetch((const char *)(words + o * 16) + 4096, _MM_HINT_T1);
            __m256i even[2], odd[2];
            for (int h = 0; h < 2; h++) {
                __m256i word = (__m256i)load_words(words + o * 16 + h * 8);
                even[h] = _mm256_and_si256(word, low);
                odd[h] = _mm256_and_si256(_mm256_srli_epi32(word, 4), low);
            }
            for (int d = 0; d < 3; d++) {
                const int8_t *digits = x->digits + d * k + g * 32 + o * 8;
                for (int h = 0; h < 2; h++) {
                    sum[h][d] = _mm256_add_epi16(sum[h][d], _mm256_maddubs_epi16(even[h], four_bytes(digits)));
                    sum[h][d] = _mm256_add_epi16(sum[h][d], _mm256_maddubs_epi16(odd[h], four_bytes(digits + 4)));
                }
            }
        }
        const uint32_t *start = (const uint32_t *)x->start + g * 3;
        for (int h = 0; h < 2; h++) {
            __m256i s = _mm256_set1_epi32(start[0] + (start[1] << 8) + (start[2] << 16));
            s = _mm256_add_epi32(s, _mm256_madd_epi16(sum[h][0], ones));
            s = _mm256_add_epi32(s, _mm256_madd_epi16(sum[h][1], n256));
            s = _mm256_add_epi32(s, _mm256_slli_epi32(_mm256_madd_epi16(sum[h][2], ones), 16));
            floats scale = scales_at(w, first * 16 + h * 8, g) * all(x->unit[g]);
            y[h] = fmadd(_mm256_cvtepi32_ps(s), scale, y[h]);
        }
    }
}

#endif

// The calling thread's share of y [rows, n] = x W.T, x in fixed point.
static void my_outputs(const Matrix *w, const void *fixed, int64_t rows, bf16 *y) {
    const int streams = AT_ONCE == 1 ? 1 : rows == 1 ? 4 : rows == 2 ? 2 : 1;
    int64_t from, to;
    my_part(w->n / 16, 1, &from, &to);
    const int64_t apart = (to - from) / streams, rest = from + apart * streams;
    for (int64_t block = from; block < to; block++) {
        if (block == from + apart) block = rest;  // the streams have been through what lies between
        if (block == to) break;
        const int blocks = block < rest ? streams : 1;
        for (int64_t m = 0; m < rows; m += AT_ONCE) {
            const int now = rows - m < AT_ONCE ? rows - m : AT_ONCE;
            Fixed x[AT_ONCE];
            floats sums[64 / LANES] = {all(0)};
            for (int i = 0; i < now; i++) x[i] = fixed_at(fixed, w->k, m + i);
#ifdef AVX512
            switch (blocks * 10 + now) {
                case 41: dot(w, block, apart, 4, x, 1, sums); break;
                case 22: dot(w, block, apart, 2, x, 2, sums); break;
                case 11: dot(w, block, 0, 1, x, 1, sums); break;
                case 12: dot(w, block, 0, 1, x, 2, sums); break;
                case 13: dot(w, block, 0, 1, x, 3, sums); break;
                default: dot(w, block, 0, 1, x, 4, sums);
            }
#else
            dot(w, block, x, sums);
#endif
            for (int i = 0; i < blocks * now; i++)
                for (int h = 0; h < 16 / LANES; h++)
                    store_bf16(y + (m + i % now) * w->n + (block + i / now * apart) * 16 + h * LANES,
                               sums[i * (16 / LANES) + h]);
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
    int64_t from, to;
    my_part(c->count, 32, &from, &to);
    for (int64_t column = from; column < to; column += WIDTH) {
        const int64_t left = c->first + column, right = left + LANES;
        for (int64_t octet = 0; octet < c->w.k / 8; octet++) {
            ints word[2] = {load_words(words_at(&c->w, left, octet)), load_words(words_at(&c->w, right, octet))};
            floats scale[2] = {scales_at(&c->w, left, octet / 4), scales_at(&c->w, right, octet / 4)};
            for (int i = 0; i < 8; i++)
                store_two_bf16(c->tile + (octet * 8 + i) * c->count + column, code(word[0], i) * scale[0],
                               code(word[1], i) * scale[1]);
        }
    }
}

// Outputs first .. first + count, multiples of 32, as bfloat16 columns: tile [k, count]
void int4_dequantize(Matrix w, int64_t first, int64_t count, bf16 *tile, int threads) {
    Dequantize call = {w, first, count, tile};
    GOMP_parallel(dequantize_body, &call, threads, 0);
}

// ---- Many rows, where there is no AMX: weights in the first cache ----

// A cell is what a lane multiplies at once: two bfloat16 of consecutive inputs, or a float. The sums of ROWS rows take
// three quarters of the registers.
#ifdef AVX512
enum { PER_CELL = 2, ROWS = 12 };
typedef uint32_t cell;
typedef __m512bh cells;

static inline cell cell_of(const bf16 *x) { return *(const cell *)x; }
static inline cells all_cells(cell x) { return (cells)_mm512_set1_epi32(x); }
static inline cells load_cells(const cell *p) { return (cells)_mm512_loadu_si512(p); }
static inline floats add_product(floats sum, cells x, cells y) { return _mm512_dpbf16_ps(sum, x, y); }

static inline void store_weights(cell *panel, ints word, floats scale) {
    for (int i = 0; i < 8; i += 2) {
        __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(code(word, i) * scale));
        __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(code(word, i + 1) * scale));
        _mm512_storeu_si512(panel + i / 2 * WIDTH, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
}
#else
enum { PER_CELL = 1, ROWS = 6 };
typedef float cell;
typedef floats cells;

static inline cell cell_of(const bf16 *x) {
    const uint32_t bits = (uint32_t)*x << 16;
    float value;
    __builtin_memcpy(&value, &bits, 4);
    return value;
}
static inline cells all_cells(cell x) { return all(x); }
static inline cells load_cells(const cell *p) { return load(p); }
static inline floats add_product(floats sum, cells x, cells y) { return fmadd(x, y, sum); }

static inline void store_weights(cell *panel, ints word, floats scale) {
    for (int i = 0; i < 8; i++) store(panel + i * WIDTH, code(word, i) * scale);
}
#endif

enum { PANEL = 256, TALL = 43 * ROWS };  // inputs to a panel, rows to a unit of work at most

typedef struct { Matrix w; const bf16 *x; cell *packed; int64_t rows; bf16 *y; } Product;

// WIDTH outputs, inputs k0 .. k0 + count: panel [count / PER_CELL, WIDTH]
static void fill_panel(const Matrix *w, int64_t output, int64_t k0, int64_t count, cell *panel) {
    for (int half = 0; half < 2; half++, output += LANES)
        for (int64_t octet = k0 / 8; octet < (k0 + count) / 8; octet++)
            store_weights(panel + (octet - k0 / 8) * (8 / PER_CELL) * WIDTH + half * LANES,
                          load_words(words_at(w, output, octet)), scales_at(w, output, octet / 4));
}

// sums [ROWS, WIDTH] += x [count, ROWS] times panel [count, WIDTH], of cells
static void multiply(const cell *x, const cell *panel, int64_t count, float *sums) {
    floats s[ROWS][2];
    for (int r = 0; r < ROWS; r++)
        for (int h = 0; h < 2; h++) s[r][h] = load(sums + r * WIDTH + h * LANES);
    for (int64_t p = 0; p < count; p++, x += ROWS, panel += WIDTH) {
        cells left = load_cells(panel), right = load_cells(panel + LANES);
        for (int r = 0; r < ROWS; r++) {
            cells one = all_cells(x[r]);
            s[r][0] = add_product(s[r][0], one, left);
            s[r][1] = add_product(s[r][1], one, right);
        }
    }
    for (int r = 0; r < ROWS; r++)
        for (int h = 0; h < 2; h++) store(sums + r * WIDTH + h * LANES, s[r][h]);
}

#ifndef AVX512
// For up to SOME rows filling panels takes longer than multiplying: here codes become floats, and are multiplied, where
// they lie in their words. So nibble i counts 16^i, which the activations are divided by (the last one, at the sign's
// place, is moved down); the 8 of the codes and the scales come in once for a group.
enum { SOME = 2 * ROWS };

// The calling thread's share of x [rows, k] -> for each ROWS rows, those beyond the last 0: x / 16^i [k, ROWS], and
// -8 * the sums of its groups [k / 32, ROWS].
static void pack_some(const Product *c) {
    static const float divided[8] = {1, 0x1p-4f, 0x1p-8f, 0x1p-12f, 0x1p-16f, 0x1p-20f, 0x1p-24f, 1};
    const int64_t k = c->w.k;
    int64_t from, to;
    my_part(k / 32, 1, &from, &to);
    for (int64_t row = 0; row < (c->rows + ROWS - 1) / ROWS * ROWS; row++) {
        float *x = c->packed + row / ROWS * ROWS * (k + k / 32) + row % ROWS, *offset = x + ROWS * k;
        for (int64_t g = from; g < to; g++) {
            float sum = 0;
            for (int64_t i = g * 32; i < g * 32 + 32; i++) {
                const float value = row < c->rows ? cell_of(c->x + row * k + i) : 0;
                x[i * ROWS] = value * divided[i % 8];
                sum += value;
            }
            offset[g * ROWS] = -8 * sum;
        }
    }
}

// WIDTH outputs of `rows` rows, a constant where this is inlined: y [rows, n] = W times what `pack_some` makes.
static inline __attribute__((always_inline)) void multiply_some(
    const Matrix *w, int64_t output, const float *x, int rows, bf16 *y) {
    const float *offset = x + ROWS * w->k;
    floats sums[ROWS][2];
    for (int r = 0; r < rows; r++) sums[r][0] = sums[r][1] = all(0);
    for (int64_t g = 0; g < w->k / 32; g++, offset += ROWS) {
        const uint32_t *words = words_at(w, output, g * 4);
        floats s[ROWS][2];
        for (int r = 0; r < rows; r++) s[r][0] = s[r][1] = all(offset[r]);
#pragma GCC unroll 1
        for (int o = 0; o < 4; o++, words += 16) {
            _mm_prefetch((const char *)words + 4096, _MM_HINT_T1);
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++, x += ROWS) {
                ints left = load_words(words), right = load_words(words + LANES);
                left = i < 7 ? left & 15 << 4 * i : left >> 28 & 15;
                right = i < 7 ? right & 15 << 4 * i : right >> 28 & 15;
                for (int r = 0; r < rows; r++) {
                    floats one = all(x[r]);
                    s[r][0] = fmadd(one, _mm256_cvtepi32_ps((__m256i)left), s[r][0]);
                    s[r][1] = fmadd(one, _mm256_cvtepi32_ps((__m256i)right), s[r][1]);
                }
            }
        }
        for (int h = 0; h < 2; h++) {
            floats scale = scales_at(w, output + h * LANES, g);
            for (int r = 0; r < rows; r++) sums[r][h] = fmadd(s[r][h], scale, sums[r][h]);
        }
    }
    for (int r = 0; r < rows; r++) store_two_bf16(y + r * w->n + output, sums[r][0], sums[r][1]);
}

static void some_rows(const Product *c) {
    int64_t from, to;
    pack_some(c);
    GOMP_barrier();
    my_part(c->w.n, WIDTH, &from, &to);
    for (int64_t output = from; output < to; output += WIDTH)
        for (int64_t row = 0; row < c->rows; row += ROWS) {
            const float *x = c->packed + row * (c->w.k + c->w.k / 32);
            bf16 *y = c->y + row * c->w.n;
            switch (c->rows - row) {
                case 1: multiply_some(&c->w, output, x, 1, y); break;
                case 2: multiply_some(&c->w, output, x, 2, y); break;
                case 3: multiply_some(&c->w, output, x, 3, y); break;
                case 4: multiply_some(&c->w, output, x, 4, y); break;
                case 5: multiply_some(&c->w, output, x, 5, y); break;
                default: multiply_some(&c->w, output, x, ROWS, y);
            }
        }
}
#endif

static void product_body(void *call) {
    const Product *c = call;
#ifndef AVX512
    if (c->rows <= SOME) {
        some_rows(c);
        return;
    }
#endif
    const int64_t k = c->w.k, n = c->w.n, count = k / PER_CELL, groups = (c->rows + ROWS - 1) / ROWS;
    const int64_t parts = (groups * ROWS + TALL - 1) / TALL, tall = (groups + parts - 1) / parts;  // in groups
    int64_t from, to;
    my_part(groups, 1, &from, &to);
    for (int64_t g = from; g < to; g++)
        for (int64_t p = 0; p < count; p++)
            for (int64_t r = 0; r < ROWS; r++)
                c->packed[(g * count + p) * ROWS + r] =
                    g * ROWS + r < c->rows ? cell_of(c->x + (g * ROWS + r) * k + p * PER_CELL) : 0;
    GOMP_barrier();

    cell panel[PANEL / PER_CELL * WIDTH] __attribute__((aligned(64)));
    float sums[TALL * WIDTH] __attribute__((aligned(64)));
    my_part(n / WIDTH * parts, 1, &from, &to);
    for (int64_t unit = from; unit < to; unit++) {
        int64_t column = unit / parts * WIDTH, first = unit % parts * tall;
        int64_t last = first + tall < groups ? first + tall : groups;
        __builtin_memset(sums, 0, sizeof sums);
        for (int64_t k0 = 0; k0 < k; k0 += PANEL) {
            int64_t some = (k - k0 < PANEL ? k - k0 : PANEL) / PER_CELL;
            fill_panel(&c->w, column, k0, some * PER_CELL, panel);
            for (int64_t g = first; g < last; g++)
                multiply(c->packed + (g * count + k0 / PER_CELL) * ROWS, panel, some,
                         sums + (g - first) * ROWS * WIDTH);
        }
        for (int64_t row = first * ROWS; row < last * ROWS && row < c->rows; row++) {
            const float *sum = sums + (row - first * ROWS) * WIDTH;
            store_two_bf16(c->y + row * n + column, load(sum), load(sum + LANES));
        }
    }
}

// x [rows, k] -> y [rows, n], n a multiple of 32; the weights in cells or as codes, the sums in float32. `packed` has
// room for x in float32, and for ROWS rows more.
void int4_product(Matrix w, const bf16 *x, int64_t rows, void *packed, bf16 *y, int threads) {
    Product call = {w, x, packed, rows, y};
    GOMP_parallel(product_body, &call, threads, 0);
}

// ---- One decoder layer for one token of each sequence ----

typedef struct {
    Matrix q, k, v, o, gate, up, down;
    const bf16 *norms[6];  // input, q, k, post_attention, pre_feedforward, post_feedforward
    int32_t heads, kv_heads, head_dim;
    float eps, scaling;
} Layer;

typedef struct {
    const Layer *layer;
    int64_t rows, few;               // sequences; up to how many of them products go by `my_outputs`: one at least
    const bf16 *hidden;              // [rows, width]
    const bf16 *cos, *sin;           // [rows, head_dim], or of all rows [head_dim] and a stride of 0
    int64_t table_stride;
    bf16 *keys, *values;             // [rows, kv_heads, length, head_dim], the last position still to be written
    int64_t head_stride, length;
    const uint8_t *mask;             // [rows, length], likewise; or NULL: attend to all
    int64_t mask_stride;
    bf16 *out;                       // [rows, width]
    bf16 *q, *k, *v, *attended, *mixed, *inner, *up, *update;
    float *scores;                   // [rows, heads, padded]
    int64_t padded;                  // length, rounded up to 16
    bf16 *x, *residual;              // [rows, width]: what a product takes, and what its result is added to
    void *prepared;                  // what it takes, as `my_outputs` or `product_body` want it
} Step;

// As Gemma3RMSNorm: in float32, times 1 + weight, rounded once.
static void rms_norm(const bf16 *x, const bf16 *weight, int64_t n, float eps, bf16 *y) {
    floats sum = all(0);
    for (int64_t i = 0; i < n; i += LANES) sum = fmadd(load_bf16(x + i), load_bf16(x + i), sum);
    floats scale = all(1 / sqrtf(total(sum) / n + eps));
    for (int64_t i = 0; i < n; i += LANES)
        store_bf16(y + i, load_bf16(x + i) * scale * (load_bf16(weight + i) + all(1)));
}

static void add(const bf16 *x, const bf16 *y, int64_t n, bf16 *sum) {
    for (int64_t i = 0; i < n; i += LANES) store_bf16(sum + i, load_bf16(x + i) + load_bf16(y + i));
}

// y = gelu(gate) * up
static void gated(const bf16 *gate, const bf16 *up, int64_t from, int64_t to, bf16 *y) {
    for (int64_t i = from; i < to; i += LANES)
        store_bf16(y + i, round_bf16(gelu_tanh(load_bf16(gate + i))) * load_bf16(up + i));
}

// The rotary embedding: x * cos + rotate_half(x) * sin.
static void rotate(const bf16 *x, const bf16 *cos, const bf16 *sin, int64_t n, bf16 *y) {
    for (int64_t i = 0; i < n / 2; i += LANES) {
        floats a = load_bf16(x + i), b = load_bf16(x + n / 2 + i);
        store_bf16(y + i, fmadd(a, load_bf16(cos + i), -(b * load_bf16(sin + i))));
        store_bf16(y + n / 2 + i, fmadd(b, load_bf16(cos + n / 2 + i), a * load_bf16(sin + n / 2 + i)));
    }
}

// The calling thread's share of scores [rows, heads, padded] = scaling * q . keys, by positions; -1e30 where masked.
static void my_scores(const Step *s) {
    const Layer *l = s->layer;
    const int64_t n = l->head_dim, group = l->heads / l->kv_heads;
    int64_t from, to;
    my_part(s->padded, 16, &from, &to);
    for (int64_t h = 0; h < s->rows * l->heads; h++) {
        const uint8_t *mask = s->mask ? s->mask + h / l->heads * s->mask_stride : NULL;
        for (int64_t at = from; at < to; at++) {
            float *score = s->scores + h * s->padded + at;
            *score = -1e30f;
            if (at >= s->length || (mask && !mask[at])) continue;
            *score = dot_bf16(s->q + h * n, s->keys + h / group * s->head_stride + at * n, n) * l->scaling;
        }
    }
}

static void softmax(float *x, int64_t n) {
    floats most = load(x), sum = all(0);
    for (int64_t i = LANES; i < n; i += LANES) most = larger(most, load(x + i));
    most = all(largest(most));
    for (int64_t i = 0; i < n; i += LANES) {
        floats e = exp_ps(load(x + i) - most);
        sum = sum + e;
        store(x + i, e);
    }
    floats inverse = all(1 / total(sum));
    for (int64_t i = 0; i < n; i += LANES) store(x + i, load(x + i) * inverse);
}

// WIDTH columns of scores . values for so many heads of one group; `heads` is a constant wherever this is inlined.
static inline __attribute__((always_inline)) void mix(const Step *s, int64_t first, int64_t column, int heads) {
    const int64_t n = s->layer->head_dim, group = s->layer->heads / s->layer->kv_heads;
    const bf16 *value = s->values + first / group * s->head_stride + column;
    floats sum[4][2];
    for (int h = 0; h < heads; h++) sum[h][0] = sum[h][1] = all(0);
    for (int64_t at = 0; at < s->length; at++, value += n) {
        floats low = load_bf16(value), high = load_bf16(value + LANES);
        _mm_prefetch((const char *)(value + 16 * n), _MM_HINT_T0);  // a stride that no hardware prefetcher follows
        for (int h = 0; h < heads; h++) {
            floats weight = all(s->scores[(first + h) * s->padded + at]);
            sum[h][0] = fmadd(weight, low, sum[h][0]);
            sum[h][1] = fmadd(weight, high, sum[h][1]);
        }
    }
    for (int h = 0; h < heads; h++)
        for (int half = 0; half < 2; half++)
            store_bf16(s->attended + (first + h) * n + column + half * LANES, sum[h][half]);
}

// The calling thread's share of the attended values, by columns of WIDTH.
static void my_mixture(const Step *s) {
    const Layer *l = s->layer;
    const int64_t columns = l->head_dim / WIDTH, group = l->heads / l->kv_heads;
    int64_t from, to;
    my_part(s->rows * l->kv_heads * columns, 1, &from, &to);
    for (int64_t unit = from; unit < to; unit++) {
        int64_t head = unit / columns * group, end = head + group, column = unit % columns * WIDTH;
        for (; head + 4 <= end; head += 4) mix(s, head, column, 4);
        for (; head + 2 <= end; head += 2) mix(s, head, column, 2);
        if (head < end) mix(s, head, column, 1);
    }
}

static int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// Bytes of `x`, `residual` and `prepared`: the last has four for each input, which is enough for `my_outputs`, and ROWS
// rows more for `product_body`.
static int64_t work_bytes(const Step *s) {
    const Layer *l = s->layer;
    const int64_t prepared = s->rows <= s->few ? s->rows : s->rows + ROWS;
    return s->rows * l->q.k * 4 + prepared * most(most(l->q.k, l->o.k), l->down.k) * 4;
}

static void use_memory(Step *s, char *memory) {
    s->x = (bf16 *)memory;
    s->residual = s->x + s->rows * s->layer->q.k;
    s->prepared = s->residual + s->rows * s->layer->q.k;
}

// The rows that the calling thread prepares for a product, or completes after it: its share of several, which it then
// has to show to the others. A single row each thread prepares for itself, which is quicker than waiting for another.
static void my_rows(const Step *s, int64_t *from, int64_t *to) {
    *from = 0;
    *to = 1;
    if (s->rows > 1) my_part(s->rows, 1, from, to);
}

// To be called with x [k] for each of `my_rows`, then, by all threads, `show`, then `my_product`.
static void prepare(const Step *s, const bf16 *x, int64_t k, int64_t row) {
    if (s->rows <= s->few) to_fixed(x, k, fixed_at(s->prepared, k, row));
}

static void show(const Step *s) {
    if (s->rows > 1) GOMP_barrier();
}

// The calling thread's share of y [rows, n] = x W.T, x [rows, k].
static void my_product(const Step *s, const Matrix *w, const bf16 *x, bf16 *y) {
    if (s->rows <= s->few) {
        my_outputs(w, s->prepared, s->rows, y);
    } else {
        Product call = {*w, x, s->prepared, s->rows, y};
        product_body(&call);
        GOMP_barrier();  // before the next product packs
    }
}

static void decoder_layer_body(void *step) {
    Step own = *(const Step *)step;
    const Step *s = &own;
    const Layer *l = s->layer;
    const int64_t width = l->q.k, n = l->head_dim, all_heads = l->heads + l->kv_heads;
    char memory[s->rows == 1 ? work_bytes(s) : 1];
    if (s->rows == 1) use_memory(&own, memory);
    int64_t first, last, from, to;
    my_rows(s, &first, &last);

    for (int64_t r = first; r < last; r++) {
        rms_norm(s->hidden + r * width, l->norms[0], width, l->eps, s->x + r * width);
        prepare(s, s->x + r * width, width, r);
    }
    show(s);
    my_product(s, &l->q, s->x, s->q);
    my_product(s, &l->k, s->x, s->k);
    my_product(s, &l->v, s->x, s->v);
    GOMP_barrier();

    my_part(s->rows * all_heads, 1, &from, &to);
    for (int64_t i = from; i < to; i++) {
        const int64_t r = i / all_heads, h = i % all_heads;
        const bf16 *cos = s->cos + r * s->table_stride, *sin = s->sin + r * s->table_stride;
        bf16 normed[n];
        if (h < l->heads) {
            bf16 *q = s->q + (r * l->heads + h) * n;
            rms_norm(q, l->norms[1], n, l->eps, normed);
            rotate(normed, cos, sin, n, q);
        } else {
            int64_t kv = r * l->kv_heads + h - l->heads, at = kv * s->head_stride + (s->length - 1) * n;
            rms_norm(s->k + kv * n, l->norms[2], n, l->eps, normed);
            rotate(normed, cos, sin, n, s->keys + at);
            __builtin_memcpy(s->values + at, s->v + kv * n, n * sizeof(bf16));
        }
    }
    GOMP_barrier();

    my_scores(s);
    GOMP_barrier();
    my_part(s->rows * l->heads, 1, &from, &to);
    for (int64_t h = from; h < to; h++) softmax(s->scores + h * s->padded, s->padded);
    GOMP_barrier();
    my_mixture(s);
    GOMP_barrier();

    for (int64_t r = first; r < last; r++) prepare(s, s->attended + r * l->o.k, l->o.k, r);
    show(s);
    my_product(s, &l->o, s->attended, s->mixed);
    GOMP_barrier();

    for (int64_t r = first; r < last; r++) {
        bf16 *x = s->x + r * width, *residual = s->residual + r * width;
        rms_norm(s->mixed + r * width, l->norms[3], width, l->eps, x);
        add(x, s->hidden + r * width, width, residual);
        rms_norm(residual, l->norms[4], width, l->eps, x);
        prepare(s, x, width, r);
    }
    show(s);
    my_product(s, &l->gate, s->x, s->inner);
    my_product(s, &l->up, s->x, s->up);
    my_part(l->gate.n / 16, 1, &from, &to);  // what this thread has just written, or, with `product_body`, all have
    for (int64_t at = 0; at < s->rows * l->gate.n; at += l->gate.n)
        gated(s->inner, s->up, at + from * 16, at + to * 16, s->inner);
    GOMP_barrier();

    for (int64_t r = first; r < last; r++) prepare(s, s->inner + r * l->down.k, l->down.k, r);
    show(s);
    my_product(s, &l->down, s->inner, s->update);
    GOMP_barrier();

    if (s->rows == 1 && omp_get_thread_num()) return;
    for (int64_t r = first; r < last; r++) {
        rms_norm(s->update + r * width, l->norms[5], width, l->eps, s->x + r * width);
        add(s->x + r * width, s->residual + r * width, width, s->out + r * width);
    }
}

// hidden [rows, width] -> out [rows, width]; appends to keys and values. Rounds to bfloat16 where transformers' Gemma 3
// does. See `Step` for the arguments.
void int4_decoder_layer(const Layer *layer, int64_t rows, int64_t few, const bf16 *hidden, const bf16 *cos,
                        const bf16 *sin, int64_t table_stride, bf16 *keys, bf16 *values, int64_t head_stride,
                        int64_t length, const uint8_t *mask, int64_t mask_stride, bf16 *out, int threads) {
    Step s = {.layer = layer, .rows = rows, .few = few, .hidden = hidden, .cos = cos, .sin = sin,
              .table_stride = table_stride, .keys = keys, .values = values, .head_stride = head_stride,
              .length = length, .mask = mask, .mask_stride = mask_stride, .out = out,
              .padded = (length + 15) / 16 * 16};
    const int64_t width = layer->q.k, q = layer->q.n, kv = layer->k.n;
    bf16 *memory = malloc(rows * (2 * q + 2 * kv + 2 * width + 2 * layer->gate.n) * sizeof(bf16));
    char *shared = rows > 1 ? malloc(work_bytes(&s)) : NULL;
    s.scores = malloc(rows * layer->heads * s.padded * sizeof(float));
    s.q = memory;
    s.k = s.q + rows * q;
    s.v = s.k + rows * kv;
    s.attended = s.v + rows * kv;
    s.mixed = s.attended + rows * q;
    s.update = s.mixed + rows * width;
    s.inner = s.update + rows * width;
    s.up = s.inner + rows * layer->gate.n;
    if (rows > 1) use_memory(&s, shared);
    GOMP_parallel(decoder_layer_body, &s, threads, 0);
    free(s.scores);
    free(shared);
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
    "int4_decoder_layer": (_POINTER, _INT64, _INT64, _POINTER, _POINTER, _POINTER, _INT64, _POINTER, _POINTER)
    + (_INT64, _INT64, _POINTER, _INT64, _POINTER, _INT),
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
        loaded = ctypes.CDLL(str(_compiled(compiler_flags())))
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


def instruction_set() -> str | None:
    """The first of INSTRUCTION_SETS that this CPU has all of."""
    flags = _cpu_flags()
    return next((name for name, features in INSTRUCTION_SETS.items() if set(features) <= set(flags)), None)


def compiler_flags() -> list[str]:
    """What to compile SOURCE with for this CPU."""
    name = instruction_set()
    if name is None:
        least = list(INSTRUCTION_SETS.values())[-1]
        missing = [feature for feature in least if feature not in _cpu_flags()]
        raise Unavailable(f"this CPU lacks {', '.join(missing)}" if _cpu_flags() else "they are for Linux on x86")
    return [*FLAGS, f"-D{name}", *(f"-m{feature.replace('_', '')}" for feature in INSTRUCTION_SETS[name])]


def _compiled(flags: list[str]) -> Path:
    """Path of the compiled library, from the cache or made now."""
    compiler = shlex.split(os.environ.get("CC", "")) or [shutil.which("cc") or shutil.which("gcc")]
    if compiler[0] is None:
        raise Unavailable("no C compiler (cc or gcc; the environment variable CC names another)")
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=True, timeout=60).stdout
    made_from = "\0".join([SOURCE, *flags, *compiler, version])
    path = _cache_folder() / f"kernel-{hashlib.sha256(made_from.encode()).hexdigest()[:32]}.so"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:  # then renamed: never seen half-written
            made = Path(scratch) / path.name
            command = [*compiler, *flags, "-x", "c", "-", "-o", str(made)]
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
