# Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
"""The C code of the CPU kernels, in one piece: made from csrc/ by `make kernels`. Changes belong there."""

SOURCE = r"""
#line 1 "csrc/int4.c"
// Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
//
// The int4 kernels for CPUs. `make kernels` packs these files into int4_cpu_source.py, which travels with a model and
// is compiled on the user's machine.
//
// All of them are one translation unit, read from top to bottom. What knows an instruction set stands in one file of
// vectors; the rest is one text. A further instruction set is a further such file, chosen here, and its compiler flags
// in int4_cpu_build.py. It defines
//
//   floats, ints, LANES          vectors of so many float32 or int32, on which C's +, -, *, /, & and shifts work
//   load ... store_bytes         the elementary operations on them, under the names that avx2.h has
//   AT_ONCE, STREAMS, dot        few rows: how many `dot` takes, or of one row how many blocks of outputs; the products
//   BF16_CELLS                   many rows, scores: that a lane multiplies two bfloat16 at once; else float_cells.h has
//     cell ... store_weights     what a lane multiplies at once, and codes made into it
//     store_cells_of_rows        columns made into cells
//   ROWS                         many rows: how many a register tile has
//   FIXED_TILES                  many rows: that tiles are in fixed point, multiplied by the codes; else they are cells
//   HAS_PAIRS                    squares, dense.h: that a lane multiplies two 16-bit integers at once
//     store_pairs, add_pairs     how it does, for FIXED_TILES too

#line 1 "csrc/interface.h"
// Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
//
// What Python calls. int4_cpu_library.py declares the same structs, field by field.
//
// Every function runs on `threads` threads of torch's own OpenMP runtime. Those that return an int need memory of their
// own: they return 0, or OUT_OF_MEMORY without having computed or changed anything.

#include <fcntl.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

typedef uint16_t bf16;

enum { OUT_OF_MEMORY = 1 };

// A matrix W [n, k] = (code - 8) * scale, in blocks of 16 outputs. n is a multiple of 32, k of 32.
typedef struct {
    const uint32_t *codes;  // [n / 16, k / 8, 16], eight codes of consecutive inputs to a word, lowest nibble first
    const void *scales;     // [n / 16, k / 32, 16]
    int32_t scale_type;     // 0 bfloat16, 1 float16, 2 float32
    int32_t n, k;
} Matrix;

// y = x W.T
typedef struct {
    Matrix weight;
    const bf16 *x;  // [rows, k]
    int64_t rows;
    void *work;  // int4_product: nine bytes for two inputs of x and of 12 rows more, at a multiple of 64; else unused
    bf16 *y;     // [rows, n]
} Product;

// Few rows: activations in fixed point (base.h), exact integer dot products of groups, scaled and summed in float32.
int int4_linear(const Product *call, int threads);

// Many rows: the weights in bfloat16 (AVX512 and NEON with BF16) or float32, the sums in float32; with AVX2, and with
// AVX512 that has VNNI and no BF16, as int4_linear, to the bit.
void int4_product(const Product *call, int threads);

// y = x W.T + bias, of bfloat16 weights and many rows; with AVX2 or VNNI in fixed point (pairs.h), else in floats.
typedef struct {
    const bf16 *weight, *bias;  // [n, k], [n] or NULL; k is a multiple of 8
    const bf16 *x;              // [rows, k]
    int64_t rows, n, k;
    void *work;  // at a multiple of 64, five bytes for each number of x, of weight, and of 12 rows and 32 outputs more
    bf16 *y;     // [rows, n]
} Dense;

void int4_dense(const Dense *call, int threads);

// Outputs first .. first + count, multiples of 32, as bfloat16 columns.
typedef struct {
    Matrix weight;
    int64_t first, count;
    bf16 *tile;  // [k, count]
} Dequantize;

void int4_dequantize(const Dequantize *call, int threads);

// Some outputs' weights, each float32(code * scale) rounded to bfloat16.
typedef struct {
    Matrix weight;
    const int64_t *outputs;  // [count]
    int64_t count;
    bf16 *rows;  // [count, k]
} Rows;

void int4_rows(const Rows *call, int threads);

// AWQ's words, in which nibble i is output 8 * j + {0, 2, 4, 6, 1, 3, 5, 7}[i], and its scales to those of a Matrix.
typedef struct {
    const uint32_t *qweight;  // [k, n / 8]
    const void *scales;       // [k / 32, n]
    uint32_t *codes;          // [n / 16, k / 8, 16], at a multiple of 32 bytes
    void *block_scales;       // [n / 16, k / 32, 16]
    int64_t bytes;            // of a scale: 2 or 4
    int64_t n, k;
} PackAwq;

// Several. Calls with the same PackAwqs can run at once: each takes the next that none has begun, until none is left.
typedef struct {
    const PackAwq *first;  // [count]
    int64_t count;
    int64_t next;      // none has begun it yet
    int32_t in_files;  // qweight and scales are in mapped files, the pages of which can go when they were read
} PackAwqs;

void int4_pack_awq(PackAwqs *call, int threads);

// Row-major words to those of a Matrix.
typedef struct {
    const uint32_t *words;  // [n, k / 8], eight codes of consecutive inputs to a word, lowest nibble first
    uint32_t *codes;        // [n / 16, k / 8, 16], at a multiple of 32 bytes
    int64_t n, k;
} PackRows;

void int4_pack_rows(const PackRows *call, int threads);

// Weights, which are products of codes and scales rounded to bfloat16, to row-major words; 0 has the code 8.
typedef struct {
    const bf16 *weight;   // [n, k]
    const float *scales;  // [n, k / 32]
    uint32_t *words;      // [n, k / 8]
    int64_t n, k;
    int32_t in_file;  // whether the weights are in a mapped file, whose pages are let go as they are read
    int32_t wrong;    // set to 1 where a weight is no such product
} Recover;

void int4_recover(Recover *call, int threads);

// A file that is to be read from disk into the system's cache while the caller goes on.
typedef struct {
    int64_t bytes;
    int32_t file;     // its descriptor
    int32_t stopped;  // set by another thread, it ends this
} ReadAhead;

void int4_read_ahead(ReadAhead *call, int threads);

// Asks for pages of 2 MB inside this memory. Refusal does no harm.
void int4_huge_pages(char *memory, int64_t bytes);

// As Gemma3RMSNorm: in float32, times 1 + weight, rounded once. n is a multiple of 16.
typedef struct {
    const bf16 *x, *weight;  // [rows, n], [n]
    int64_t rows, n;
    float eps;
    bf16 *y;  // [rows, n]
} Norm;

void int4_rms_norm(const Norm *call, int threads);

// y = gelu_tanh(gate) * up, of n numbers each, or where up is NULL, gelu_tanh(gate); n is a multiple of 16.
typedef struct {
    const bf16 *gate, *up;
    int64_t n;
    bf16 *y;
} Gated;

void int4_gated(const Gated *call, int threads);

// What a decoder layer is made of.
typedef struct {
    Matrix q, k, v, o, gate, up, down;
    const bf16 *norms[6];  // input, q, k, post_attention, pre_feedforward, post_feedforward
    int32_t heads, kv_heads, head_dim;
    float eps, scaling;
} Layer;

// One token of each of `rows` sequences through a decoder layer.
typedef struct {
    const Layer *layer;
    int64_t rows;
    int64_t few;            // up to how many rows products are as int4_linear's, beyond them as int4_product's; >= 1
    const bf16 *hidden;     // [rows, width]
    const bf16 *cos, *sin;  // [rows, head_dim], or of all rows [head_dim] and a stride of 0
    int64_t table_stride;   // of cos and sin, in numbers
    bf16 *keys, *values;    // [rows, kv_heads, length, head_dim], the last position still to be written
    int64_t head_stride;    // of keys and values, in numbers
    int64_t length;         // positions to attend to, the new one included
    const uint8_t *mask;    // [rows, length], 0: not attended to; or NULL: attend to all
    int64_t mask_stride;    // 0 where all rows share one
    bf16 *out;              // [rows, width]
} Step;

// Steps through several layers, one after the other.
typedef struct {
    const Step *first;  // [count]
    int64_t count;
} Steps;

// hidden -> out; appends to keys and values. Rounds to bfloat16 where transformers' Gemma 3 does.
int int4_decoder_layers(const Steps *call, int threads);

// Attention of many queries. Query r of a sequence sees the keys first[r] .. end[r], less those where `seen` is 0. With
// AVX2 or VNNI, where each sees all, in fixed point (square.h).
typedef struct {
    const bf16 *query, *key, *value;                             // [batch, heads or kv_heads, queries or keys, dim]
    int64_t query_strides[3], key_strides[3], value_strides[3];  // of batch, head and row, in numbers
    const int32_t *first, *end;                                  // [batch, queries]; or NULL: all keys are seen
    int64_t rule_stride;                                         // of sequences in both, 0 where they share one
    const uint8_t *seen;                                         // [batch, keys], or NULL
    int64_t seen_stride;                                         // of sequences, in bytes
    int64_t batch, heads, kv_heads, queries, keys, dim;          // dim is a multiple of 8
    float scaling;
    bf16 *out;  // [batch, queries, heads, dim]
} Attention;

int int4_attention(const Attention *call, int threads);
#line 22 "csrc/int4.c"
#line 1 "csrc/base.h"
// Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
//
// What needs no vectors: threads, a matrix's words, fixed point.

// Threads are torch's own: these come from the OpenMP runtime that torch has loaded.
void GOMP_parallel(void (*body)(void *), void *call, unsigned threads, unsigned flags);
void GOMP_barrier(void);
int omp_get_thread_num(void);
int omp_get_num_threads(void);

// Has each of the threads call body(call).
static void run(void (*body)(void *), const void *call, int threads) { GOMP_parallel(body, (void *)call, threads, 0); }

// The calling thread's share of 0..count, in multiples of `step`.
static void my_share(int64_t count, int64_t step, int64_t *from, int64_t *to) {
    int64_t threads = omp_get_num_threads(), t = omp_get_thread_num(), steps = count / step;
    *from = steps * t / threads * step;
    *to = t + 1 == threads ? count : steps * (t + 1) / threads * step;
}

// Units of work, which threads take one after the other, each with some memory of its own.
typedef struct {
    const void *call;
    int64_t next;  // the unit that no thread has begun yet
    char *memory;
    size_t each;  // bytes of it to a thread
} Units;

static inline int64_t next_unit(Units *units) { return __atomic_fetch_add(&units->next, 1, __ATOMIC_RELAXED); }
static inline void *my_memory(const Units *units) { return units->memory + units->each * omp_get_thread_num(); }

// Has each of the threads call body(units of call), with `bytes` of memory.
static int run_units(void (*body)(void *), const void *call, size_t bytes, int threads) {
    Units units = {.call = call, .each = (bytes + 4095) / 4096 * 4096};
    units.memory = aligned_alloc(4096, units.each * threads);
    if (!units.memory) return OUT_OF_MEMORY;
    run(body, &units, threads);
    free(units.memory);
    return 0;
}

// The next part of some memory, on a cache line of its own.
static void *take(uintptr_t *at, int64_t bytes) {
    void *part = (void *)*at;
    *at += (bytes + 63) / 64 * 64;
    return part;
}

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

static const float NOTHING = -1e30f;  // the score of what is not seen

static inline float float_of(bf16 x) {
    const uint32_t bits = (uint32_t)x << 16;
    float value;
    __builtin_memcpy(&value, &bits, 4);
    return value;
}

static float power_of_2(int32_t exponent) {
    const int32_t bits = (exponent + 127) << 23;
    float power;
    __builtin_memcpy(&power, &bits, 4);
    return power;
}

static inline const uint32_t *words_at(const Matrix *w, int64_t output, int64_t octet) {
    return w->codes + (output / 16 * (w->k / 8) + octet) * 16 + output % 16;
}

// A row of activations in fixed point. In each group of 32 inputs x = (d0 + 256 * d1 + 65536 * d2) * unit, the d's
// signed bytes and the unit a power of two, 23 bits below the largest |x| of the group: bfloat16 has 8 bits, so only
// what float32 would lose in the sum as well is rounded. A dot product with codes is then three of bytes, and exact.
// Where the largest |x| is at most 32 times the mean of the others, d0 is rounded away: 15 bits below the largest, so
// that at most 2^-10 of that mean is lost, half of what rounding it to bfloat16 may lose.
typedef struct {
    int8_t *digits;   // [3, k], of each 8 inputs first the even ones, then the odd ones
    int32_t *start;   // [k / 32, 3], -8 * sum of the digits: what the codes' offset of 8 comes to
    float *unit;      // [k / 32]
    int32_t *lowest;  // [k / 32], the first d that is not 0 everywhere: 0 or 1
} Fixed;

// The first digit of a group that is not 0 everywhere in any of these rows.
static inline int lowest_of(const Fixed *x, int rows, int64_t group) {
    int lowest = 1;
    for (int m = 0; m < rows; m++) lowest &= x[m].lowest[group];
    return lowest;
}

static size_t fixed_bytes(int64_t k) { return k / 32 * (96 + 20); }

static Fixed fixed_at(const void *memory, int64_t k, int64_t row) {
    char *p = (char *)memory + row * fixed_bytes(k);
    float *unit = (float *)(p + 3 * k + k / 32 * 12);
    return (Fixed){(int8_t *)p, (int32_t *)(p + 3 * k), unit, (int32_t *)unit + k / 32};
}
#line 23 "csrc/int4.c"

#if defined(AVX512_BF16) || defined(AVX512_VNNI) || defined(AVX512)
#line 1 "csrc/avx512.h"
// Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
//
// AVX512: vectors of 16 numbers; with byte dot products (AVX512_VNNI), and with these, bfloat16 dot products
// (AVX512_BF16), where the CPU has them.

#include <immintrin.h>

enum { LANES = 16, WIDTH = 2 * LANES };  // WIDTH: two vectors side by side, as most loops take them
typedef __m512 floats;
typedef int32_t ints __attribute__((vector_size(64)));

static inline floats load(const float *p) { return _mm512_loadu_ps(p); }
static inline void store(float *p, floats x) { _mm512_storeu_ps(p, x); }
static inline ints load_words(const uint32_t *p) { return (ints)_mm512_loadu_si512(p); }
static inline floats broadcast(float x) { return _mm512_set1_ps(x); }
static inline floats fmadd(floats a, floats b, floats c) { return _mm512_fmadd_ps(a, b, c); }
static inline floats minimum(floats a, floats b) { return _mm512_min_ps(a, b); }
static inline floats maximum(floats a, floats b) { return _mm512_max_ps(a, b); }
static inline ints maximum_ints(ints a, ints b) { return (ints)_mm512_max_epi32((__m512i)a, (__m512i)b); }
static inline float sum_of(floats x) { return _mm512_reduce_add_ps(x); }
static inline float maximum_of(floats x) { return _mm512_reduce_max_ps(x); }
static inline int32_t sum_of_ints(ints x) { return _mm512_reduce_add_epi32((__m512i)x); }
static inline int32_t maximum_of_ints(ints x) { return _mm512_reduce_max_epi32((__m512i)x); }
static inline floats to_floats(ints x) { return _mm512_cvtepi32_ps((__m512i)x); }
static inline ints round_to_ints(floats x) { return (ints)_mm512_cvtps_epi32(x); }
static inline floats round_to_whole(floats x) { return _mm512_roundscale_ps(x, 0); }
static inline floats times_power_of_2(floats x, floats power) { return _mm512_scalef_ps(x, power); }

static inline floats load_bf16(const bf16 *p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)p)), 16));
}

#ifdef AVX512_BF16

static inline __m256i to_bf16(floats x) { return (__m256i)_mm512_cvtneps_pbh(x); }

static inline void store_two_bf16(bf16 *p, floats x, floats next) {
    _mm512_storeu_si512(p, (__m512i)_mm512_cvtne2ps_pbh(next, x));
}

#else

// To the nearest bfloat16, of two as near the even one.
static inline __m256i to_bf16(floats x) {
    const ints bits = (ints)x, odd = (ints)_mm512_srli_epi32((__m512i)x, 16) & 1, nan = x != x;
    const ints rounded = (ints)_mm512_srli_epi32((__m512i)(bits + odd + 0x7FFF), 16);
    return _mm512_cvtepi32_epi16((__m512i)((rounded & ~nan) | (nan & 0x7FC0)));
}

static inline void store_two_bf16(bf16 *p, floats x, floats next) {
    _mm256_storeu_si256((void *)p, to_bf16(x));
    _mm256_storeu_si256((void *)(p + LANES), to_bf16(next));
}

#endif

static inline void store_bf16(bf16 *p, floats x) { _mm256_storeu_si256((void *)p, to_bf16(x)); }

static inline floats load_f16(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const void *)p)); }

static inline floats round_bf16(floats x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(to_bf16(x)), 16));
}

// Nibble i of each word, less 8.
static inline floats codes_of(ints words, int i) {
    const floats table = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
    return _mm512_permutexvar_ps(_mm512_srli_epi32((__m512i)words, 4 * i), table);
}

// The low bytes of x to their place from `at` on; of each 8 first the even ones, then the odd ones.
static inline void store_bytes(int8_t *octets, int at, ints x) {
    const __m128i even_odd = _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
    _mm_storeu_si128((void *)(octets + at), _mm_shuffle_epi8(_mm512_cvtepi32_epi8((__m512i)x), even_odd));
}

static inline floats scales_at(const Matrix *w, int64_t output, int64_t group);  // matrix.h

enum { AT_ONCE = 4, STREAMS = 4 };

static inline __m512i four_bytes(const int8_t *p) { return _mm512_set1_epi32(*(const int32_t *)p); }

// sum + products of unsigned by signed bytes, four to a lane. Codes have 4 bits, so that two products fit 16.
static inline __m512i add_bytes(__m512i sum, __m512i codes, __m512i digits) {
#ifdef AVX512
    const __m512i ones = _mm512_set1_epi16(1);
    return (__m512i)((ints)sum + (ints)_mm512_madd_epi16(_mm512_maddubs_epi16(codes, digits), ones));
#else
    return _mm512_dpbusd_epi32(sum, codes, digits);
#endif
}

// One group of `dot_streams`, of the digits from `lowest` on, which is a constant too.
static inline __attribute__((always_inline)) void add_group(const Matrix *w, int64_t first, int64_t apart, int blocks,
                                                            const Fixed *x, int rows, int64_t g, int lowest,
                                                            floats *y) {
    const __m512i low = _mm512_set1_epi32(0x0F0F0F0F);
    const int64_t k = w->k;
    __m512i sum[4][3];
    for (int i = 0; i < blocks * rows; i++)
        for (int d = lowest; d < 3; d++) sum[i][d] = _mm512_set1_epi32(x[i % rows].start[g * 3 + d]);
    for (int o = 0; o < 4; o++)
        for (int b = 0; b < blocks; b++) {
            const uint32_t *words = words_at(w, (first + b * apart) * 16, g * 4 + o);
            __builtin_prefetch((const char *)words + 4096, 0, 2);
            __m512i word = _mm512_loadu_si512(words);
            __m512i even = _mm512_and_si512(word, low), odd = _mm512_and_si512(_mm512_srli_epi32(word, 4), low);
            for (int m = 0; m < rows; m++)
                for (int d = lowest; d < 3; d++) {
                    const int8_t *digits = x[m].digits + d * k + g * 32 + o * 8;
                    __m512i *total = &sum[b * rows + m][d];
                    *total = add_bytes(*total, even, four_bytes(digits));
                    *total = add_bytes(*total, odd, four_bytes(digits + 4));
                }
        }
    for (int i = 0; i < blocks * rows; i++) {
        floats scale = scales_at(w, (first + i / rows * apart) * 16, g);
        floats s = lowest ? broadcast(0) : _mm512_cvtepi32_ps(sum[i][0]);
        s = fmadd(_mm512_cvtepi32_ps(sum[i][1]), broadcast(256), s);
        s = fmadd(_mm512_cvtepi32_ps(sum[i][2]), broadcast(65536), s);
        y[i] = fmadd(s, scale * broadcast(x[i % rows].unit[g]), y[i]);
    }
}

// Few rows: y [blocks][rows][16] = rows of x times blocks of 16 outputs, which stand `apart` blocks from each other in
// memory: several streams of reading fill the bandwidth better than one. `blocks` and `rows` are constants where it is
// inlined.
static inline __attribute__((always_inline)) void dot_streams(const Matrix *w, int64_t first, int64_t apart, int blocks,
                                                              const Fixed *x, int rows, floats *y) {
    for (int i = 0; i < blocks * rows; i++) y[i] = broadcast(0);
    for (int64_t g = 0; g < w->k / 32; g++)
        if (lowest_of(x, rows, g))
            add_group(w, first, apart, blocks, x, rows, g, 1, y);
        else
            add_group(w, first, apart, blocks, x, rows, g, 0, y);
}

// `rows`, AT_ONCE at most, times one block or several.
static inline __attribute__((always_inline)) void dot(const Matrix *w, int64_t first, int64_t apart, int blocks,
                                                      const Fixed *x, int rows, floats *y) {
    switch (blocks * 10 + rows) {
        case 41: dot_streams(w, first, apart, 4, x, 1, y); break;
        case 22: dot_streams(w, first, apart, 2, x, 2, y); break;
        case 11: dot_streams(w, first, 0, 1, x, 1, y); break;
        case 12: dot_streams(w, first, 0, 1, x, 2, y); break;
        case 13: dot_streams(w, first, 0, 1, x, 3, y); break;
        default: dot_streams(w, first, 0, 1, x, 4, y);
    }
}

// Many rows: the sums of ROWS rows take three quarters of the registers.
enum { ROWS = 12 };

#ifdef AVX512_BF16

// A cell is what a lane multiplies at once, here two bfloat16 of consecutive inputs.
#define BF16_CELLS
enum { PER_CELL = 2 };
typedef uint32_t cell;
typedef __m512bh cells;

static inline cell cell_of(const bf16 *x) { return *(const cell *)x; }
static inline cells broadcast_cell(cell x) { return (cells)_mm512_set1_epi32(x); }
static inline cells load_cells(const cell *p) { return (cells)_mm512_loadu_si512(p); }
static inline cells cells_of(const bf16 *p) { return (cells)_mm512_loadu_si512(p); }
static inline floats add_product(floats sum, cells x, cells y) { return _mm512_dpbf16_ps(sum, x, y); }

static inline void store_weights(cell *panel, ints word, floats scale) {
    for (int i = 0; i < 8; i += 2) {
        __m512i low = _mm512_cvtepu16_epi32(to_bf16(codes_of(word, i) * scale));
        __m512i high = _mm512_cvtepu16_epi32(to_bf16(codes_of(word, i + 1) * scale));
        _mm512_storeu_si512(panel + i / 2 * WIDTH, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
}

// WIDTH columns of PER_CELL rows.
static inline void store_cells_of_rows(cell *panel, const bf16 *row, const bf16 *next) {
    for (int half = 0; half < WIDTH; half += LANES) {
        __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)(row + half)));
        __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)(next + half)));
        _mm512_storeu_si512(panel + half, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
}

#endif

#ifdef AVX512_VNNI
#define FIXED_TILES
#endif

#ifndef AVX512

#define HAS_PAIRS

// The low 16 bits of x in pairs: of each 8 numbers 0 and 4, 1 and 5, 2 and 6, 3 and 7.
static inline void store_pairs(int32_t *p, ints x) {
    const __m128i order = _mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15);
    const __m256i halves = _mm512_cvtepi32_epi16((__m512i)x);
    _mm256_storeu_si256((void *)p, _mm256_shuffle_epi8(halves, _mm256_broadcastsi128_si256(order)));
}

// sum + products of 16-bit numbers, two to a lane.
static inline ints add_pairs(ints sum, ints x, ints y) {
    sum = (ints)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)x, (__m512i)y);
#ifdef __AVX512VNNI__         // which it is not where tests emulate it
    __asm__("" : "+v"(sum));  // else gcc 12 keeps the sums of a tile in memory
#endif
    return sum;
}

#endif
#line 26 "csrc/int4.c"
#elif defined(AVX2_VNNI) || defined(AVX2)
#line 1 "csrc/avx2.h"
// Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
//
// AVX2, FMA and F16C: vectors of 8 numbers; with 16-bit dot products (AVX_VNNI) where the CPU has them.

#include <immintrin.h>

enum { LANES = 8, WIDTH = 2 * LANES };  // WIDTH: two vectors side by side, as most loops take them
typedef __m256 floats;
typedef int32_t ints __attribute__((vector_size(32)));

static inline floats load(const float *p) { return _mm256_loadu_ps(p); }
static inline void store(float *p, floats x) { _mm256_storeu_ps(p, x); }
static inline ints load_words(const uint32_t *p) { return (ints)_mm256_loadu_si256((const void *)p); }
static inline floats broadcast(float x) { return _mm256_set1_ps(x); }
static inline floats fmadd(floats a, floats b, floats c) { return _mm256_fmadd_ps(a, b, c); }
static inline floats minimum(floats a, floats b) { return _mm256_min_ps(a, b); }
static inline floats maximum(floats a, floats b) { return _mm256_max_ps(a, b); }
static inline ints maximum_ints(ints a, ints b) { return (ints)_mm256_max_epi32((__m256i)a, (__m256i)b); }
static inline floats to_floats(ints x) { return _mm256_cvtepi32_ps((__m256i)x); }
static inline ints round_to_ints(floats x) { return (ints)_mm256_cvtps_epi32(x); }
static inline floats round_to_whole(floats x) {
    return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
static inline floats times_power_of_2(floats x, floats power) {
    return x * (floats)((round_to_ints(power) + 127) << 23);
}

static inline float sum_of(floats x) {
    __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_add_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
}

static inline float maximum_of(floats x) {
    __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_max_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
}

static inline int32_t sum_of_ints(ints x) {
    __m128i y = _mm_add_epi32(_mm256_castsi256_si128((__m256i)x), _mm256_extracti128_si256((__m256i)x, 1));
    y = _mm_add_epi32(y, _mm_shuffle_epi32(y, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(y, _mm_shuffle_epi32(y, 0xB1)));
}

static inline int32_t maximum_of_ints(ints x) {
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
    return _mm256_blendv_ps((floats)bits, broadcast(NAN), _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
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
static inline floats codes_of(ints words, int i) { return _mm256_cvtepi32_ps((__m256i)((words >> 4 * i & 15) - 8)); }

// The low bytes of x to their place from `at` on: first the even ones, then the odd ones.
static inline void store_bytes(int8_t *octets, int at, ints x) {
    const __m256i even_odd = _mm256_setr_epi8(0, 8, -1, -1, 4, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,  //
                                              -1, -1, 0, 8, -1, -1, 4, 12, -1, -1, -1, -1, -1, -1, -1, -1);
    __m256i bytes = _mm256_shuffle_epi8((__m256i)x, even_odd);
    _mm_storel_epi64((void *)(octets + at),
                     _mm_or_si128(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1)));
}

static inline floats scales_at(const Matrix *w, int64_t output, int64_t group);  // matrix.h

enum { AT_ONCE = 2, STREAMS = 1 };

static inline __m256i four_bytes(const int8_t *p) { return _mm256_set1_epi32(*(const int32_t *)p); }

// whole [rows][2] += what digits `from` .. `to` of a group of rows of x and the codes of one block of outputs come to.
// All but the first two are constants where it is inlined.
//
// A lane of 16 bits adds up 16 products of a group: 16 * 15 * 128 < 2^15.
static inline __attribute__((always_inline)) void add_digits(const uint32_t *words, int64_t g, int64_t k,
                                                             const Fixed *x, int rows, int from, int to,
                                                             __m256i (*whole)[2]) {
    const __m256i low = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1), n256 = _mm256_set1_epi16(256);
    __m256i sum[2][2][3];
    for (int m = 0; m < rows; m++)
        for (int d = from; d < to; d++) sum[m][0][d] = sum[m][1][d] = _mm256_setzero_si256();
#pragma GCC unroll 1  // unrolled, the sums do not stay in registers
    for (int o = 0; o < 4; o++) {
        __builtin_prefetch((const char *)(words + o * 16) + 4096, 0, 2);
        __m256i even[2], odd[2];
        for (int h = 0; h < 2; h++) {
            __m256i word = (__m256i)load_words(words + o * 16 + h * 8);
            even[h] = _mm256_and_si256(word, low);
            odd[h] = _mm256_and_si256(_mm256_srli_epi32(word, 4), low);
        }
        for (int m = 0; m < rows; m++)
            for (int d = from; d < to; d++) {
                const int8_t *digits = x[m].digits + d * k + g * 32 + o * 8;
                for (int h = 0; h < 2; h++) {
                    __m256i *s = &sum[m][h][d];
                    *s = _mm256_add_epi16(*s, _mm256_maddubs_epi16(even[h], four_bytes(digits)));
                    *s = _mm256_add_epi16(*s, _mm256_maddubs_epi16(odd[h], four_bytes(digits + 4)));
                }
            }
    }
    for (int m = 0; m < rows; m++)
        for (int h = 0; h < 2; h++)
            for (int d = from; d < to; d++) {
                __m256i s = _mm256_madd_epi16(sum[m][h][d], d == 1 ? n256 : ones);
                whole[m][h] = _mm256_add_epi32(whole[m][h], d == 2 ? _mm256_slli_epi32(s, 16) : s);
            }
}

// All digits and the offset together come to 2^31 at most (23 bits of x, 8 of 32 codes less 8); what overflows on the
// way there comes back.
static inline __attribute__((always_inline)) void dot_rows(const Matrix *w, int64_t block, const Fixed *x, int rows,
                                                           floats *y) {
    const int64_t k = w->k;
    for (int i = 0; i < 2 * rows; i++) y[i] = broadcast(0);
    for (int64_t g = 0; g < k / 32; g++) {
        const uint32_t *words = words_at(w, block * 16, g * 4);
        __m256i whole[2][2];
        for (int m = 0; m < rows; m++) {
            const uint32_t *start = (const uint32_t *)x[m].start + g * 3;
            whole[m][0] = whole[m][1] = _mm256_set1_epi32(start[0] + (start[1] << 8) + (start[2] << 16));
        }
        add_digits(words, g, k, x, rows, 1, 3, whole);
        if (!lowest_of(x, rows, g)) add_digits(words, g, k, x, rows, 0, 1, whole);
        for (int h = 0; h < 2; h++) {
            floats scale = scales_at(w, block * 16 + h * 8, g);
            for (int m = 0; m < rows; m++)
                y[m * 2 + h] = fmadd(_mm256_cvtepi32_ps(whole[m][h]), scale * broadcast(x[m].unit[g]), y[m * 2 + h]);
        }
    }
}

// Few rows: y [rows][16] = rows of x times one block of outputs.
static inline void dot(const Matrix *w, int64_t block, int64_t apart, int blocks, const Fixed *x, int rows, floats *y) {
    (void)apart, (void)blocks;  // it is one
    floats sums[4];             // of its own, so that they stay in registers
    if (rows == 1)
        dot_rows(w, block, x, 1, sums);
    else
        dot_rows(w, block, x, 2, sums);
    for (int i = 0; i < 2 * rows; i++) y[i] = sums[i];
}

// Many rows: the sums of ROWS rows take three quarters of the registers.
enum { ROWS = 6 };

#define FIXED_TILES
#define HAS_PAIRS

// The low 16 bits of x in pairs: numbers 0 and 4, 1 and 5, 2 and 6, 3 and 7.
static inline void store_pairs(int32_t *p, ints x) {
    const __m256i halves = _mm256_packs_epi32((__m256i)x, (__m256i)x);
    _mm_storeu_si128((void *)p,
                     _mm_unpacklo_epi16(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1)));
}

// sum + products of 16-bit numbers, two to a lane.
static inline ints add_pairs(ints sum, ints x, ints y) {
#ifdef AVX2_VNNI
    sum = (ints)_mm256_dpwssd_avx_epi32((__m256i)sum, (__m256i)x, (__m256i)y);
#else
    sum += (ints)_mm256_madd_epi16((__m256i)x, (__m256i)y);
#endif
    __asm__("" : "+x"(sum));  // else gcc keeps the sums of a tile in memory
    return sum;
}
#line 28 "csrc/int4.c"
#elif defined(__ARM_NEON)
#line 1 "csrc/neon.h"
// Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
//
// NEON: vectors of 4 numbers; with byte dot products (DOTPROD), and with these, byte matrix products and bfloat16 dot
// products (I8MM, BF16), where the compiler is told that the CPU has them.
//
// A table of codes (TBL) maps bytes to bytes and would have to be put in order by outputs first, so it costs more than
// the shifts here.

#include <arm_neon.h>

enum { LANES = 4, WIDTH = 2 * LANES };  // WIDTH: two vectors side by side, as most loops take them
typedef float32x4_t floats;
typedef int32_t ints __attribute__((vector_size(16)));

static inline floats load(const float *p) { return vld1q_f32(p); }
static inline void store(float *p, floats x) { vst1q_f32(p, x); }
static inline ints load_words(const uint32_t *p) { return (ints)vld1q_u32(p); }
static inline floats broadcast(float x) { return vdupq_n_f32(x); }
static inline floats fmadd(floats a, floats b, floats c) { return vfmaq_f32(c, a, b); }
// As on x86, b where either is NaN.
static inline floats minimum(floats a, floats b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
static inline floats maximum(floats a, floats b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
static inline ints maximum_ints(ints a, ints b) { return (ints)vmaxq_s32((int32x4_t)a, (int32x4_t)b); }
static inline float maximum_of(floats x) { return vmaxnmvq_f32(x); }
static inline int32_t sum_of_ints(ints x) { return vaddvq_s32((int32x4_t)x); }
static inline int32_t maximum_of_ints(ints x) { return vmaxvq_s32((int32x4_t)x); }
static inline floats to_floats(ints x) { return vcvtq_f32_s32((int32x4_t)x); }
static inline ints round_to_ints(floats x) { return (ints)vcvtnq_s32_f32(x); }
static inline floats round_to_whole(floats x) { return vrndnq_f32(x); }
static inline floats times_power_of_2(floats x, floats power) {
    return x * (floats)((round_to_ints(power) + 127) << 23);
}

static inline float sum_of(floats x) {  // in the order of AVX2
    float32x2_t y = vadd_f32(vget_low_f32(x), vget_high_f32(x));
    return vget_lane_f32(y, 0) + vget_lane_f32(y, 1);
}

static inline floats load_bf16(const bf16 *p) { return (floats)vshll_n_u16(vld1_u16(p), 16); }

#ifdef __ARM_FEATURE_BF16_VECTOR_ARITHMETIC

static inline uint16x8_t two_bf16(floats x, floats next) {
    return (uint16x8_t)vcvtq_high_bf16_f32(vcvtq_low_bf16_f32(x), next);
}

#else

// To the nearest bfloat16, of two as near the even one; in the upper half of each number.
static inline uint32x4_t rounded_bits(floats x) {
    uint32x4_t bits = (uint32x4_t)x, odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    bits = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7FFF)));
    return vbslq_u32(vceqq_f32(x, x), bits, vdupq_n_u32(0x7FC00000));
}

static inline uint16x8_t two_bf16(floats x, floats next) {
    return vshrn_high_n_u32(vshrn_n_u32(rounded_bits(x), 16), rounded_bits(next), 16);
}

#endif

static inline floats round_bf16(floats x) { return (floats)vshll_n_u16(vget_low_u16(two_bf16(x, x)), 16); }
static inline void store_bf16(bf16 *p, floats x) { vst1_u16(p, vget_low_u16(two_bf16(x, x))); }
static inline void store_two_bf16(bf16 *p, floats x, floats next) { vst1q_u16(p, two_bf16(x, next)); }

static inline floats load_f16(const uint16_t *p) { return vcvt_f32_f16((float16x4_t)vld1_u16(p)); }

// Nibble i of each word, less 8: that with its upper bit changed, and signed.
static inline floats codes_of(ints words, int i) { return to_floats((words ^ ~0x77777777) << (28 - 4 * i) >> 28); }

// The low bytes of x to their place from `at` on; of each 8 first the even ones, then the odd ones.
static inline void store_bytes(int8_t *octets, int at, ints x) {
    const uint16x4_t even_odd = (uint16x4_t)vqtbl1_u8((uint8x16_t)x, vcreate_u8(0x0C040800));
    uint16_t *p = (uint16_t *)(octets + at / 8 * 8 + at % 8 / 2);
    vst1_lane_u16(p, even_odd, 0);
    vst1_lane_u16(p + 2, even_odd, 1);
}

static inline floats scales_at(const Matrix *w, int64_t output, int64_t group);  // matrix.h

// Nibbles 0, 2, 4, 6 of each word, and 1, 3, 5, 7.
static inline int8x16_t even_codes(const uint32_t *words) {
    return (int8x16_t)vandq_u8((uint8x16_t)vld1q_u32(words), vdupq_n_u8(15));
}
static inline int8x16_t odd_codes(const uint32_t *words) {
    return (int8x16_t)vshrq_n_u8((uint8x16_t)vld1q_u32(words), 4);
}

// What a group's sums of digits add to its outputs. All digits and the offset together come to 2^31 at most (23 bits of
// x, 8 of 32 codes less 8); what overflows on the way there comes back.
static inline int32x4_t join_digits(int32x4_t start, const int32x4_t *sum, int lowest) {
    int32x4_t whole = vaddq_s32(start, vaddq_s32(vshlq_n_s32(sum[1], 8), vshlq_n_s32(sum[2], 16)));
    return lowest ? whole : vaddq_s32(whole, sum[0]);
}

static inline int32_t start_of(const Fixed *x, int64_t group) {
    const uint32_t *start = (const uint32_t *)x->start + group * 3;
    return start[0] + (start[1] << 8) + (start[2] << 16);
}

static inline floats scaled(const Matrix *w, int64_t output, int64_t group, const Fixed *x, int32x4_t sum, floats y) {
    return fmadd(vcvtq_f32_s32(sum), scales_at(w, output, group) * broadcast(x->unit[group]), y);
}

// Few rows: y [rows][16] = rows of x times one block of outputs.
#ifdef __ARM_FEATURE_DOTPROD

// A group of `dot_one`, of the digits from `lowest` on, a constant where it is inlined.
static inline __attribute__((always_inline)) void one_group(const Matrix *w, int64_t block, int64_t g, const Fixed *x,
                                                            int lowest, floats *total) {
    const uint32_t *words = words_at(w, block * 16, g * 4);
    int32x4_t sum[4][3];
    for (int v = 0; v < 4; v++)
        for (int d = lowest; d < 3; d++) sum[v][d] = vdupq_n_s32(0);
#pragma GCC unroll 1  // unrolled, the sums do not stay in registers
    for (int o = 0; o < 4; o++, words += 16) {
        __builtin_prefetch((const char *)words + 4096, 0, 2);
        for (int d = lowest; d < 3; d++) {
            const int8x8_t digits = vld1_s8(x->digits + d * w->k + g * 32 + o * 8);
            for (int v = 0; v < 4; v++) {
                sum[v][d] = vdotq_lane_s32(sum[v][d], even_codes(words + v * 4), digits, 0);
                sum[v][d] = vdotq_lane_s32(sum[v][d], odd_codes(words + v * 4), digits, 1);
            }
        }
    }
    for (int v = 0; v < 4; v++) {
        int32x4_t whole = join_digits(vdupq_n_s32(start_of(x, g)), sum[v], lowest);
        total[v] = scaled(w, block * 16 + v * 4, g, x, whole, total[v]);
    }
}

static void dot_one(const Matrix *w, int64_t block, const Fixed *x, floats *y) {
    floats total[4] = {broadcast(0), broadcast(0), broadcast(0), broadcast(0)};
    for (int64_t g = 0; g < w->k / 32; g++)
        if (x->lowest[g])
            one_group(w, block, g, x, 1, total);
        else
            one_group(w, block, g, x, 0, total);
    for (int v = 0; v < 4; v++) y[v] = total[v];
}

#ifdef __ARM_FEATURE_MATMUL_INT8

enum { AT_ONCE = 2, STREAMS = 1 };

// A group of `dot_two`, of the digits from `lowest` on, a constant where it is inlined.
static inline __attribute__((always_inline)) void two_group(const Matrix *w, int64_t first, int64_t g, const Fixed *x,
                                                            int lowest, floats (*total)[2]) {
    const uint32_t *words = words_at(w, first, g * 4);
    int32x4_t sum[4][3];  // of two outputs: [output][row]
    for (int v = 0; v < 4; v++)
        for (int d = lowest; d < 3; d++) sum[v][d] = vdupq_n_s32(0);
#pragma GCC unroll 1
    for (int o = 0; o < 4; o++, words += 16) {
        __builtin_prefetch((const char *)words + 4096, 0, 2);
        int8x16_t codes[4];
        for (int v = 0; v < 2; v++) {
            int32x4_t even = (int32x4_t)even_codes(words + v * 4), odd = (int32x4_t)odd_codes(words + v * 4);
            codes[v * 2] = (int8x16_t)vzip1q_s32(even, odd);
            codes[v * 2 + 1] = (int8x16_t)vzip2q_s32(even, odd);
        }
        for (int d = lowest; d < 3; d++) {
            const int64_t at = d * w->k + g * 32 + o * 8;
            int8x16_t digits = vcombine_s8(vld1_s8(x[0].digits + at), vld1_s8(x[1].digits + at));
            for (int v = 0; v < 4; v++) sum[v][d] = vmmlaq_s32(sum[v][d], codes[v], digits);
        }
    }
    const int32x4_t start = {start_of(x, g), start_of(x + 1, g), start_of(x, g), start_of(x + 1, g)};
    for (int v = 0; v < 2; v++) {
        int32x4_t left = join_digits(start, sum[v * 2], lowest), right = join_digits(start, sum[v * 2 + 1], lowest);
        total[0][v] = scaled(w, first + v * 4, g, x, vuzp1q_s32(left, right), total[0][v]);
        total[1][v] = scaled(w, first + v * 4, g, x + 1, vuzp2q_s32(left, right), total[1][v]);
    }
}

// Half a block: 8 inputs of two outputs times those of two rows at once.
static void dot_two(const Matrix *w, int64_t block, int half, const Fixed *x, floats *y) {
    floats total[2][2] = {{broadcast(0), broadcast(0)}, {broadcast(0), broadcast(0)}};
    for (int64_t g = 0; g < w->k / 32; g++)
        if (lowest_of(x, 2, g))
            two_group(w, block * 16 + half * 8, g, x, 1, total);
        else
            two_group(w, block * 16 + half * 8, g, x, 0, total);
    for (int m = 0; m < 2; m++)
        for (int v = 0; v < 2; v++) y[m * 4 + half * 2 + v] = total[m][v];
}

static void dot(const Matrix *w, int64_t block, int64_t apart, int blocks, const Fixed *x, int rows, floats *y) {
    (void)apart, (void)blocks;  // it is one
    if (rows == 1) {
        dot_one(w, block, x, y);
        return;
    }
    dot_two(w, block, 0, x, y);
    dot_two(w, block, 1, x, y);
}

#else

enum { AT_ONCE = 1, STREAMS = 1 };

static void dot(const Matrix *w, int64_t block, int64_t apart, int blocks, const Fixed *x, int rows, floats *y) {
    (void)apart, (void)blocks, (void)rows;  // both are 1
    dot_one(w, block, x, y);
}

#endif

#else

enum { AT_ONCE = 1, STREAMS = 1 };

// Half a block, a group of it, of the digits from `lowest` on, a constant where it is inlined.
//
// A lane of 16 bits adds up 8 products of a group: 8 * 15 * 128 < 2^15.
static inline __attribute__((always_inline)) void half_group(const Matrix *w, int64_t first, int64_t g, const Fixed *x,
                                                             int lowest, floats *total) {
    const uint32_t *words = words_at(w, first, g * 4);
    int16x8_t sum[2][3][2];  // of each four outputs the first two and the others
    for (int v = 0; v < 2; v++)
        for (int d = lowest; d < 3; d++) sum[v][d][0] = sum[v][d][1] = vdupq_n_s16(0);
#pragma GCC unroll 1
    for (int o = 0; o < 4; o++, words += 16) {
        __builtin_prefetch((const char *)words + 4096, 0, 2);
        for (int d = lowest; d < 3; d++) {
            const int32_t *digits = (const int32_t *)(x->digits + d * w->k + g * 32 + o * 8);
            const int8x16_t part[2] = {(int8x16_t)vld1q_dup_s32(digits), (int8x16_t)vld1q_dup_s32(digits + 1)};
            for (int v = 0; v < 2; v++)
                for (int odd = 0; odd < 2; odd++) {
                    int8x16_t codes = odd ? odd_codes(words + v * 4) : even_codes(words + v * 4);
                    int16x8_t *s = sum[v][d];
                    s[0] = vmlal_s8(s[0], vget_low_s8(codes), vget_low_s8(part[odd]));
                    s[1] = vmlal_high_s8(s[1], codes, part[odd]);
                }
        }
    }
    for (int v = 0; v < 2; v++) {
        int32x4_t whole[3];
        for (int d = lowest; d < 3; d++) whole[d] = vpaddq_s32(vpaddlq_s16(sum[v][d][0]), vpaddlq_s16(sum[v][d][1]));
        int32x4_t all = join_digits(vdupq_n_s32(start_of(x, g)), whole, lowest);
        total[v] = scaled(w, first + v * 4, g, x, all, total[v]);
    }
}

static void dot(const Matrix *w, int64_t block, int64_t apart, int blocks, const Fixed *x, int rows, floats *y) {
    (void)apart, (void)blocks, (void)rows;  // both are 1
    for (int half = 0; half < 2; half++, y += 2) {
        floats total[2] = {broadcast(0), broadcast(0)};
        for (int64_t g = 0; g < w->k / 32; g++)
            if (x->lowest[g])
                half_group(w, block * 16 + half * 8, g, x, 1, total);
            else
                half_group(w, block * 16 + half * 8, g, x, 0, total);
        y[0] = total[0];
        y[1] = total[1];
    }
}

#endif

// Many rows: a cell is what a lane multiplies at once, here two bfloat16 of consecutive inputs, or a float. The sums of
// ROWS rows take half of the registers: of 12 rows, gcc keeps some in memory.
#ifdef __ARM_FEATURE_BF16_VECTOR_ARITHMETIC

#define BF16_CELLS
enum { PER_CELL = 2, ROWS = 8 };
typedef uint32_t cell;
typedef bfloat16x8_t cells;

static inline cell cell_of(const bf16 *x) { return *(const cell *)x; }
static inline cells broadcast_cell(cell x) { return (cells)vdupq_n_u32(x); }
static inline cells load_cells(const cell *p) { return (cells)vld1q_u32(p); }
static inline cells cells_of(const bf16 *p) { return (cells)vld1q_u16(p); }
static inline floats add_product(floats sum, cells x, cells y) { return vbfdotq_f32(sum, x, y); }

static inline void store_weights(cell *panel, ints word, floats scale) {
    for (int i = 0; i < 8; i += 2) {
        uint16x8_t both = two_bf16(codes_of(word, i) * scale, codes_of(word, i + 1) * scale);
        vst1q_u32(panel + i / 2 * WIDTH, (uint32x4_t)vzip1q_u16(both, vextq_u16(both, both, 4)));
    }
}

// WIDTH columns of PER_CELL rows.
static inline void store_cells_of_rows(cell *panel, const bf16 *row, const bf16 *next) {
    const uint16x8x2_t both = {{vld1q_u16(row), vld1q_u16(next)}};  // of its own: vst2q_u16 may be a macro
    vst2q_u16((uint16_t *)panel, both);
}

#else

enum { ROWS = 8 };

#endif
#line 30 "csrc/int4.c"
#endif
#ifndef BF16_CELLS
#line 1 "csrc/float_cells.h"
// Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
//
// Many rows: a cell, which is what a lane multiplies at once, is a float.

enum { PER_CELL = 1 };
typedef float cell;
typedef floats cells;

static inline cell cell_of(const bf16 *x) { return float_of(*x); }
static inline cells broadcast_cell(cell x) { return broadcast(x); }
static inline cells load_cells(const cell *p) { return load(p); }
static inline cells cells_of(const bf16 *p) { return load_bf16(p); }
static inline floats add_product(floats sum, cells x, cells y) { return fmadd(x, y, sum); }

static inline void store_weights(cell *panel, ints word, floats scale) {
    for (int i = 0; i < 8; i++) store(panel + i * WIDTH, codes_of(word, i) * scale);
}

// WIDTH columns of PER_CELL rows.
static inline void store_cells_of_rows(cell *panel, const bf16 *row, const bf16 *next) {
    (void)next;
    store(panel, load_bf16(row));
    store(panel + LANES, load_bf16(row + LANES));
}
#line 33 "csrc/int4.c"
#endif

#line 1 "csrc/matrix.h"
// Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
//
// A matrix in memory: its scales, its values as bfloat16, and how it comes from AWQ's words.

static inline floats scales_at(const Matrix *w, int64_t output, int64_t group) {
    const int64_t at = (output / 16 * (w->k / 32) + group) * 16 + output % 16;
    if (w->scale_type == 2) return load((const float *)w->scales + at);
    const uint16_t *halves = (const uint16_t *)w->scales + at;
    return w->scale_type == 0 ? load_bf16(halves) : load_f16(halves);
}

static void dequantize_body(void *call) {
    const Dequantize *c = call;
    int64_t from, to;
    my_share(c->count, 32, &from, &to);
    for (int64_t column = from; column < to; column += WIDTH) {
        const int64_t left = c->first + column, right = left + LANES;
        for (int64_t octet = 0; octet < c->weight.k / 8; octet++) {
            ints word[2] = {load_words(words_at(&c->weight, left, octet)),
                            load_words(words_at(&c->weight, right, octet))};
            floats scale[2] = {scales_at(&c->weight, left, octet / 4), scales_at(&c->weight, right, octet / 4)};
            for (int i = 0; i < 8; i++)
                store_two_bf16(c->tile + (octet * 8 + i) * c->count + column, codes_of(word[0], i) * scale[0],
                               codes_of(word[1], i) * scale[1]);
        }
    }
}

void int4_dequantize(const Dequantize *call, int threads) { run(dequantize_body, call, threads); }

static void rows_body(void *call) {
    const Rows *c = call;
    const int64_t k = c->weight.k;
    int64_t from, to;
    my_share(c->count, 1, &from, &to);
    for (int64_t row = from; row < to; row++) {
        const int64_t output = c->outputs[row], lane = output % LANES;
        for (int64_t g = 0; g < k / 32; g++) {
            const floats scales = scales_at(&c->weight, output - lane, g);
            float values[32] __attribute__((aligned(64)));
            for (int i = 0; i < 32; i++) {
                const uint32_t word = *words_at(&c->weight, output, g * 4 + i / 8);
                values[i] = ((int32_t)(word >> i % 8 * 4 & 15) - 8) * scales[lane];
            }
            for (int i = 0; i < 32; i += LANES) store_bf16(c->rows + row * k + g * 32 + i, load(values + i));
        }
    }
}

void int4_rows(const Rows *call, int threads) { run(rows_body, call, threads); }

void int4_huge_pages(char *memory, int64_t bytes) {
    const uintptr_t huge = 1 << 21;
    uintptr_t from = ((uintptr_t)memory + huge - 1) / huge * huge, to = ((uintptr_t)memory + bytes) / huge * huge;
    if (from < to) madvise((void *)from, to - from, MADV_HUGEPAGE);
}

// Words of AWQ side by side, each with 8 outputs of one input.
typedef uint32_t words __attribute__((vector_size(32)));

#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (words){__VA_ARGS__})
#endif

// Exchanges the lanes of a whose number has bit h with those of b whose number has not.
static inline void exchange_lanes(words *a, words *b, int h) {
    const words x = *a, y = *b;
    if (h == 4) *a = SHUFFLE(x, y, 0, 1, 2, 3, 8, 9, 10, 11), *b = SHUFFLE(x, y, 4, 5, 6, 7, 12, 13, 14, 15);
    if (h == 2) *a = SHUFFLE(x, y, 0, 1, 8, 9, 4, 5, 12, 13), *b = SHUFFLE(x, y, 2, 3, 10, 11, 6, 7, 14, 15);
    if (h == 1) *a = SHUFFLE(x, y, 0, 8, 2, 10, 4, 12, 6, 14), *b = SHUFFLE(x, y, 1, 9, 3, 11, 5, 13, 7, 15);
}

// x[i][j] and x[j][i] change places.
static inline void transpose(words x[8]) {
    for (int h = 4; h; h /= 2)
        for (int i = 0; i < 8; i++)
            if (!(i & h)) exchange_lanes(&x[i], &x[i | h], h);
}

// Rows [count, n], `stride` apart, n a multiple of 8, to 8 columns of a panel [n / per, WIDTH], `per` numbers of 16
// bits to a cell; 0 where there is no row. Eight by 16 numbers change places in registers.
static inline __attribute__((always_inline)) void fill_columns(const uint16_t *rows, int64_t stride, int64_t count,
                                                               int64_t n, int per, uint32_t *panel) {
    for (int64_t i = 0; i < n; i += 16) {
        words pairs[8] = {0};  // of numbers; of a row, then of all eight
        for (int64_t j = 0; j < 8 && j < count; j++)
            __builtin_memcpy(&pairs[j], rows + j * stride + i, n - i >= 16 ? 32 : 16);
        transpose(pairs);
        for (int64_t p = 0; p < 8 && i + 2 * p < n; p++) {
            uint32_t *to = panel + (i + 2 * p) / per * WIDTH;
            const words low = per == 2 ? pairs[p] : pairs[p] << 16, high = pairs[p] & 0xFFFF0000;
            __builtin_memcpy(to, &low, 32);
            if (per == 1) __builtin_memcpy(to + WIDTH, &high, 32);
        }
    }
}

// As `exchange_lanes`, of the nibbles of every lane.
static inline void exchange_nibbles(words *a, words *b, int h) {
    const uint32_t low = h == 4 ? 0x0000FFFF : h == 2 ? 0x00FF00FF : 0x0F0F0F0F;
    const words change = (*a >> 4 * h ^ *b) & low;
    *b ^= change;
    *a ^= change << 4 * h;
}

// Writes a line of 64 bytes: past the caches, which would read it first, since nothing reads it soon.
static inline void store_line(uint32_t *line, words left, words right) {
#ifdef __AVX__
    _mm256_stream_si256((__m256i *)line, (__m256i)left);
    _mm256_stream_si256((__m256i *)line + 1, (__m256i)right);
#else
    __builtin_memcpy(line, &left, 32);
    __builtin_memcpy(line + 8, &right, 32);
#endif
}

// 8 inputs of up to 8 words side by side: transposed by nibbles, a word has 8 inputs of one output; by lanes, 8 outputs
// stand side by side. Two such halves are a line of a block.
static inline void pack_octet(const PackAwq *c, int64_t octet, int64_t word, int64_t count) {
    static const int order[8] = {0, 2, 4, 6, 1, 3, 5, 7};
    words inputs[8] = {0}, outputs[8];
    for (int i = 0; i < 8; i++)
        __builtin_memcpy(&inputs[i], c->qweight + (octet * 8 + i) * (c->n / 8) + word, count * 4);
    for (int h = 4; h; h /= 2)
        for (int i = 0; i < 8; i++)
            if (!(i & h)) exchange_nibbles(&inputs[i], &inputs[i | h], h);
    for (int i = 0; i < 8; i++) outputs[order[i]] = inputs[i];
    transpose(outputs);
    uint32_t *block = c->codes + (word / 2 * (c->k / 8) + octet) * 16;
    for (int64_t i = 0; i < count; i += 2) store_line(block + i * c->k, outputs[i], outputs[i + 1]);
}

static void pack_awq_body(void *call) {
    const PackAwq *c = call;
    enum { STRIP = 1024 };  // words that are read of an input before the next one, which lies in another page
    const int64_t groups = c->k / 32, sixteen = 16 * c->bytes;
    int64_t from, to;
    my_share(c->n / 8, 2, &from, &to);
    for (int64_t strip = from; strip < to; strip += STRIP) {
        const int64_t end = least(strip + STRIP, to);
        for (int64_t octet = 0; octet < c->k / 8; octet++) {
            int64_t word = strip;
            for (; word + 8 <= end; word += 8) pack_octet(c, octet, word, 8);
            if (word < end) pack_octet(c, octet, word, end - word);
        }
        for (int64_t group = 0; group < groups; group++)
            for (int64_t block = strip / 2; block < end / 2; block++)
                __builtin_memcpy((char *)c->block_scales + (block * groups + group) * sixteen,
                                 (const char *)c->scales + group * c->n * c->bytes + block * sixteen, sixteen);
    }
#ifdef __AVX__
    _mm_sfence();
#endif
}

// Lets go of the whole pages in this part of a mapped file.
static void leave_pages(const void *memory, int64_t bytes) {
    const uintptr_t page = sysconf(_SC_PAGESIZE);
    const uintptr_t from = ((uintptr_t)memory + page - 1) / page * page, to = ((uintptr_t)memory + bytes) / page * page;
    if (from < to) madvise((void *)from, to - from, MADV_DONTNEED);
}

// One thread: the disk is what takes its time.
void int4_read_ahead(ReadAhead *call, int threads) {
    (void)threads;
#ifdef POSIX_FADV_WILLNEED
    const int64_t step = 1 << 17;  // of more the system reads this much only (Linux: read_ahead_kb)
    for (int64_t at = 0; at < call->bytes && !__atomic_load_n(&call->stopped, __ATOMIC_RELAXED); at += step)
        posix_fadvise(call->file, at, step, POSIX_FADV_WILLNEED);
#endif
}

void int4_pack_awq(PackAwqs *call, int threads) {
    int64_t i;
    while ((i = __atomic_fetch_add(&call->next, 1, __ATOMIC_RELAXED)) < call->count) {
        const PackAwq *c = call->first + i;
        run(pack_awq_body, c, threads);
        if (call->in_files) {
            leave_pages(c->qweight, c->k * c->n / 2);
            leave_pages(c->scales, c->k / 32 * c->n * c->bytes);
        }
    }
}

static void pack_rows_body(void *call) {
    const PackRows *c = call;
    const int64_t octets = c->k / 8;
    int64_t from, to;
    my_share(c->n, 16, &from, &to);
    for (int64_t row = from; row < to; row += 16)
        for (int64_t octet = 0; octet < octets; octet += 8) {
            const int64_t count = least(8, octets - octet);
            words rows[2][8] = {{{0}}};
            for (int i = 0; i < 16; i++)
                __builtin_memcpy(&rows[i / 8][i % 8], c->words + (row + i) * octets + octet, count * 4);
            transpose(rows[0]);
            transpose(rows[1]);
            uint32_t *line = c->codes + (row * octets / 16 + octet) * 16;
            for (int64_t i = 0; i < count; i++) store_line(line + i * 16, rows[0][i], rows[1][i]);
        }
#ifdef __AVX__
    _mm_sfence();
#endif
}

void int4_pack_rows(const PackRows *call, int threads) { run(pack_rows_body, call, threads); }

typedef float eight __attribute__((vector_size(32)));
typedef uint16_t eight_halves __attribute__((vector_size(16)));

// The codes of eight weights, in 0..15; `wrong` gets bits where they are none.
static inline words codes_of_weights(const bf16 *weight, float scale, words *wrong) {
    const eight whole = (eight){0} + 12582912;  // 1.5 * 2^23, to which a number is added to be rounded
    eight_halves halves;
    __builtin_memcpy(&halves, weight, sizeof halves);
    const eight w = (eight)(__builtin_convertvector(halves, words) << 16);
    const eight rounded = w / (scale ? scale : 1) + whole;
    const words bits = (words)((rounded - whole) * scale);
    const words again = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000;
    const words code = (words)(rounded + 8) - (words)whole;
    *wrong |= (words)((eight)again != w) | (code & ~15u);
    return code;
}

// Up to eight words of a row. Inlined, so that `count` is known where it is 8.
static inline __attribute__((always_inline)) void recover_words(Recover *c, int64_t octet, int64_t count,
                                                                words *wrong) {
    words codes[8], packed = {0};
    for (int64_t i = 0; i < 8; i++)
        codes[i] =
            i < count ? codes_of_weights(c->weight + (octet + i) * 8, c->scales[(octet + i) / 4], wrong) : packed;
    transpose(codes);
    for (int i = 0; i < 8; i++) packed |= codes[i] << 4 * i;
    __builtin_memcpy(c->words + octet, &packed, count * 4);
}

static void recover_body(void *call) {
    Recover *c = call;
    words wrong = {0};
    int64_t from, to;
    my_share(c->n, 1, &from, &to);
    int64_t octet = from * c->k / 8;
    const int64_t end = to * c->k / 8;
    for (; octet + 8 <= end; octet += 8) recover_words(c, octet, 8, &wrong);
    if (octet < end) recover_words(c, octet, end - octet, &wrong);
    for (int i = 0; i < 8; i++)
        if (wrong[i]) __atomic_store_n(&c->wrong, 1, __ATOMIC_RELAXED);
}

void int4_recover(Recover *call, int threads) {
    run(recover_body, call, threads);
    if (call->in_file) leave_pages(call->weight, call->n * call->k * sizeof(bf16));
}
#line 36 "csrc/int4.c"
#line 1 "csrc/few_rows.h"
// Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
//
// Few rows of activations: their fixed point, and integer dot products with the codes.

enum { PARTS = 32 / LANES };

// The fixed point of a group's 32 inputs: whole numbers of what it returns. *lowest is as a Fixed's.
static inline float group_to_fixed(const bf16 *x, ints whole[PARTS], int32_t *lowest) {
    floats part[PARTS], total = broadcast(0);
    ints bits = {0};
    for (int p = 0; p < PARTS; p++) {
        part[p] = load_bf16(x + p * LANES);
        ints size = (ints)part[p] & 0x7FFFFFFF;
        bits = maximum_ints(bits, size);
        total = total + (floats)size;
    }
    const int32_t most = maximum_of_ints(bits);
    const int infinite = most >> 23 == 255;  // or NaN
    // Biased. A d2 of 127.5 would not fit: the largest mantissa counts to the next exponent.
    int32_t exponent = (most + 0x10000) >> 23;
    if (exponent < 30) exponent = 30;
    float largest;
    __builtin_memcpy(&largest, &most, 4);
    *lowest = largest * 31 <= 32 * (sum_of(total) - largest);
    const floats per_unit = broadcast(power_of_2(127 + 22 - exponent));
    const floats shortened = broadcast(power_of_2(127 + 14 - exponent));
    for (int p = 0; p < PARTS; p++)
        whole[p] = *lowest ? round_to_ints(part[p] * shortened) << 8 : round_to_ints(part[p] * per_unit);
    return infinite ? NAN : power_of_2(exponent - 127 - 22);
}

static inline ints low_byte(ints x) { return x << 24 >> 24; }  // signed

static void to_fixed(const bf16 *x, int64_t k, Fixed f) {
    for (int64_t g = 0; g < k / 32; g++) {
        ints whole[PARTS], sum[3] = {{0}};
        f.unit[g] = group_to_fixed(x + g * 32, whole, f.lowest + g);
        for (int p = 0; p < PARTS; p++)
            for (int d = 0; d < 3; d++) {
                const ints digit = low_byte(whole[p]);
                whole[p] = (whole[p] - digit) >> 8;
                sum[d] += digit;
                store_bytes(f.digits + d * k + g * 32, p * LANES, digit);
            }
        for (int d = 0; d < 3; d++) f.start[g * 3 + d] = -8 * sum_of_ints(sum[d]);
    }
}

// The calling thread's share of y [rows, n] = x W.T, x in fixed point.
static void few_rows(const Matrix *w, const void *fixed, int64_t rows, bf16 *y) {
    const int streams = rows > 0 && rows < STREAMS ? STREAMS / rows : 1;
    int64_t from, to;
    my_share(w->n / 16, 1, &from, &to);
    const int64_t apart = (to - from) / streams, rest = from + apart * streams;
    for (int64_t block = from; block < to; block++) {
        if (block == from + apart) block = rest;  // the streams have been through what lies between
        if (block == to) break;
        const int blocks = block < rest ? streams : 1;
        for (int64_t m = 0; m < rows; m += AT_ONCE) {
            const int now = rows - m < AT_ONCE ? rows - m : AT_ONCE;
            Fixed x[AT_ONCE];
            floats sums[64 / LANES] = {broadcast(0)};
            for (int i = 0; i < now; i++) x[i] = fixed_at(fixed, w->k, m + i);
            dot(w, block, apart, blocks, x, now, sums);
            for (int i = 0; i < blocks * now; i++)
                for (int h = 0; h < 16 / LANES; h++)
                    store_bf16(y + (m + i % now) * w->n + (block + i / now * apart) * 16 + h * LANES,
                               sums[i * (16 / LANES) + h]);
        }
    }
}

static void linear_body(void *call) {
    const Product *c = call;
    few_rows(&c->weight, c->work, c->rows, c->y);
}

int int4_linear(const Product *call, int threads) {
    Product own = *call;
    const int64_t k = own.weight.k;
    own.work = malloc(own.rows * fixed_bytes(k));
    if (!own.work) return OUT_OF_MEMORY;
    for (int64_t m = 0; m < own.rows; m++) to_fixed(own.x + m * k, k, fixed_at(own.work, k, m));
    run(linear_body, &own, threads);
    free(own.work);
    return 0;
}
#line 37 "csrc/int4.c"
#line 1 "csrc/cell_tiles.h"
// Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
//
// Tiles of cells: products of float32 or bfloat16 numbers, of many rows and of attention.

// sums [rows, WIDTH] += x times panel [count, WIDTH], of cells; cell p of row r is x[r * across + p * along]. Of WIDTH
// both halves, or the left one. `rows`, `halves` and where cells stand are constants where it is inlined.
static inline __attribute__((always_inline)) void multiply_rows(const cell *x, int64_t across, int64_t along,
                                                                const cell *panel, int64_t count, int rows, int halves,
                                                                float *sums) {
    floats s[ROWS][2];
#pragma GCC unroll 12  // else gcc stores the sums in every turn on Arm
    for (int r = 0; r < rows; r++)
        for (int h = 0; h < halves; h++) s[r][h] = load(sums + r * WIDTH + h * LANES);
    for (int64_t p = 0; p < count; p++, x += along, panel += WIDTH) {
        cells left = load_cells(panel), right = load_cells(panel + LANES);
        for (int r = 0; r < rows; r++) {
            cells one = broadcast_cell(x[r * across]);
            s[r][0] = add_product(s[r][0], one, left);
            if (halves == 2) s[r][1] = add_product(s[r][1], one, right);
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++)
        for (int h = 0; h < halves; h++) store(sums + r * WIDTH + h * LANES, s[r][h]);
}

// x [count, ROWS]. Of the last rows, which may be fewer than ROWS, half a tile where that is enough.
static void multiply(const cell *x, const cell *panel, int64_t count, int64_t rows, float *sums) {
    if (rows > ROWS / 2)
        multiply_rows(x, 1, ROWS, panel, count, ROWS, 2, sums);
    else
        multiply_rows(x, 1, ROWS, panel, count, ROWS / 2, 2, sums);
}

#ifndef FIXED_TILES

// Inputs to a panel: 16 KB at most.
enum { PANEL = 4096 / WIDTH * PER_CELL < 256 ? 4096 / WIDTH * PER_CELL : 256 };

// The weights of WIDTH outputs and some inputs.
typedef struct {
    cell weights[PANEL / PER_CELL * WIDTH];
} __attribute__((aligned(64))) Panel;

// Inputs k0 .. k0 + count.
static void fill_panel(const Matrix *w, int64_t output, int64_t k0, int64_t count, Panel *panel) {
    for (int half = 0; half < 2; half++, output += LANES)
        for (int64_t octet = k0 / 8; octet < (k0 + count) / 8; octet++)
            store_weights(panel->weights + (octet - k0 / 8) * (8 / PER_CELL) * WIDTH + half * LANES,
                          load_words(words_at(w, output, octet)), scales_at(w, output, octet / 4));
}

// A tile's cells of x: [k / PER_CELL, ROWS]
static inline cell *tile_at(const Product *c, int64_t tile) {
    return (cell *)c->work + tile * (c->weight.k / PER_CELL) * ROWS;
}

static void pack_tile(const Product *c, int64_t tile) {
    const int64_t k = c->weight.k;
    cell *packed = tile_at(c, tile);
    for (int64_t p = 0; p < k / PER_CELL; p++)
        for (int64_t r = 0; r < ROWS; r++) {
            const int64_t row = tile * ROWS + r;
            packed[p * ROWS + r] = row < c->rows ? cell_of(c->x + row * k + p * PER_CELL) : 0;
        }
}

// sums [ROWS, WIDTH] += a tile times a panel.
static void multiply_tile(const Product *c, int64_t tile, int64_t k0, int64_t count, const Panel *panel,
                          const uint32_t *ahead, float *sums) {
    (void)ahead;
    multiply(tile_at(c, tile) + k0 / PER_CELL * ROWS, panel->weights, count / PER_CELL, c->rows - tile * ROWS, sums);
}

#endif
#line 38 "csrc/int4.c"
#ifdef FIXED_TILES
#line 1 "csrc/fixed_tiles.h"
// Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
//
// Many rows: tiles in fixed point, where a lane multiplies two 16-bit integers at once, twice as many as floats: the
// arithmetic of few_rows.h, to the bit. Of a group's numbers the upper 16 bits are multiplied, and the low byte where
// one of the tile's rows has any.

typedef int16_t halves __attribute__((vector_size(sizeof(ints))));

enum { PANEL = 256, PAIRS = 32 / 2 };  // inputs to a panel; pairs of inputs to a group

// The codes of WIDTH outputs and some inputs, less 8, in pairs as `store_pairs` makes them: of each 8 inputs 0 and 4, 1
// and 5, 2 and 6, 3 and 7, which a shift and a mask take out of a word. And the scales of their groups.
typedef struct {
    int32_t codes[PANEL / 2 * WIDTH];
    float scales[PANEL / 32 * WIDTH];
} __attribute__((aligned(64))) Panel;

// A tile's numbers of one group, their upper 16 bits, [PAIRS, ROWS]; times the unit, or, where one of them has a low
// byte, times 256 units.
typedef struct {
    int32_t high[PAIRS * ROWS];
    float unit[ROWS];
    int32_t has_low;
} __attribute__((aligned(64))) Group;

// Their low bytes as numbers of 16 bits; without meaning where none has one.
typedef struct {
    int32_t pairs[PAIRS * ROWS];
} Low;

_Static_assert((sizeof(Group) + sizeof(Low)) * 2 <= ROWS * 32 * 9, "Product.work has nine bytes for two inputs");

// Inputs k0 .. k0 + count.
static void fill_panel(const Matrix *w, int64_t output, int64_t k0, int64_t count, Panel *panel) {
    for (int half = 0; half < 2; half++, output += LANES) {
        for (int64_t g = 0; g < count / 32; g++)
            store(panel->scales + g * WIDTH + half * LANES, scales_at(w, output, k0 / 32 + g));
        for (int64_t octet = 0; octet < count / 8; octet++) {
            const ints word = load_words(words_at(w, output, k0 / 8 + octet));
            for (int i = 0; i < 4; i++) {
                const ints less_8 = (ints)((halves)(word >> 4 * i & 0x000F000F) - 8);
                __builtin_memcpy(panel->codes + (octet * 4 + i) * WIDTH + half * LANES, &less_8, sizeof less_8);
            }
        }
    }
}

static inline Group *group_at(const Product *c, int64_t tile, int64_t group) {
    return (Group *)c->work + tile * (c->weight.k / 32) + group;
}

// The low bytes stand behind all groups: most are not read.
static inline Low *low_at(const Product *c, int64_t tile, int64_t group) {
    return (Low *)group_at(c, (c->rows + ROWS - 1) / ROWS, 0) + tile * (c->weight.k / 32) + group;
}

static void pack_tile(const Product *c, int64_t tile) {
    const int64_t k = c->weight.k, rows = least(c->rows - tile * ROWS, ROWS);
    for (int64_t g = 0; g < k / 32; g++) {
        Group *group = group_at(c, tile, g);
        int32_t high[ROWS][PAIRS] = {0}, low[ROWS][PAIRS] = {0};
        float unit[ROWS] = {0};
        group->has_low = 0;
        for (int64_t r = 0; r < rows; r++) {
            ints whole[PARTS];
            int32_t lowest;
            unit[r] = group_to_fixed(c->x + (tile * ROWS + r) * k + g * 32, whole, &lowest);
            group->has_low |= !lowest;
            for (int p = 0; p < PARTS; p++) {
                const ints byte = low_byte(whole[p]);
                store_pairs(high[r] + p * LANES / 2, (whole[p] - byte) >> 8);
                store_pairs(low[r] + p * LANES / 2, byte);
            }
        }
        for (int r = 0; r < ROWS; r++) group->unit[r] = group->has_low ? unit[r] : unit[r] * 256;
        for (int i = 0; i < PAIRS; i++)
            for (int r = 0; r < ROWS; r++) group->high[i * ROWS + r] = high[r][i];
        for (int i = 0; i < PAIRS && group->has_low; i++)
            for (int r = 0; r < ROWS; r++) low_at(c, tile, g)->pairs[i * ROWS + r] = low[r][i];
    }
}

// totals [rows, WIDTH] += x [PAIRS, ROWS] times codes [PAIRS, WIDTH]. `rows` is a constant where it is inlined.
static inline __attribute__((always_inline)) void add_products(const int32_t *x, const int32_t *codes, int rows,
                                                               ints totals[][2]) {
    for (int i = 0; i < PAIRS; i++, x += ROWS, codes += WIDTH) {
        const ints left = load_words((const uint32_t *)codes), right = load_words((const uint32_t *)codes + LANES);
        for (int r = 0; r < rows; r++) {
            const ints pair = x[r] - (ints){0};  // in each lane
            totals[r][0] = add_pairs(totals[r][0], pair, left);
            totals[r][1] = add_pairs(totals[r][1], pair, right);
        }
    }
}

// sums [rows, WIDTH] += a tile's group times its codes and scales. All of a total has 31 bits (23 of x, 8 of 32 codes).
static inline __attribute__((always_inline)) void multiply_group(const Group *x, const Low *low, const int32_t *codes,
                                                                 const float *scales, int rows, float *sums) {
    ints totals[ROWS][2];
    for (int r = 0; r < rows; r++) totals[r][0] = totals[r][1] = (ints){0};
    add_products(x->high, codes, rows, totals);
    if (x->has_low) {
        for (int r = 0; r < rows; r++)
            for (int h = 0; h < 2; h++) totals[r][h] <<= 8;
        add_products(low->pairs, codes, rows, totals);
    }
    for (int r = 0; r < rows; r++)
        for (int h = 0; h < 2; h++) {
            const floats factor = load(scales + h * LANES) * broadcast(x->unit[r]);
            float *sum = sums + r * WIDTH + h * LANES;
            store(sum, fmadd(to_floats(totals[r][h]), factor, load(sum)));
        }
}

// sums [ROWS, WIDTH] += a tile times a panel; of the last rows, which may be fewer, half a tile where that is enough.
// Meanwhile the next tile's groups are on their way, and, if there are any, the words `ahead` of the next panel.
static void multiply_tile(const Product *c, int64_t tile, int64_t k0, int64_t count, const Panel *panel,
                          const uint32_t *ahead, float *sums) {
    const Group *x = group_at(c, tile, k0 / 32);
    const Low *low = low_at(c, tile, k0 / 32);
    const int half = c->rows - tile * ROWS <= ROWS / 2;
    const Group *next = group_at(c, tile + 1, k0 / 32);
    for (int64_t g = 0; g < count / 32; g++) {
        for (size_t at = 0; at < sizeof(Group); at += 64) __builtin_prefetch((const char *)(next + g) + at, 0, 3);
        for (int i = 0; ahead && i < WIDTH / 4; i++)  // 16 outputs after the other, four octets of each
            __builtin_prefetch(ahead + (i / 4 * (c->weight.k / 8) + g * 4 + i % 4) * 16, 0, 2);
        const int32_t *codes = panel->codes + g * PAIRS * WIDTH;
        if (half)
            multiply_group(x + g, low + g, codes, panel->scales + g * WIDTH, ROWS / 2, sums);
        else
            multiply_group(x + g, low + g, codes, panel->scales + g * WIDTH, ROWS, sums);
    }
}
#line 40 "csrc/int4.c"
#endif
#ifdef HAS_PAIRS
#line 1 "csrc/pairs.h"
// Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
//
// Fixed point for numbers that are no codes: where a lane multiplies two 16-bit integers at once, twice as many as
// floats. Numbers that are multiplied and summed up share a unit, which they are whole multiples of, so large that no
// sum of products has more than 31 bits.

enum { RUN = 256 };  // numbers of a row that share a unit, at most

static inline floats size_of(floats x) { return (floats)((ints)x & 0x7FFFFFFF); }

// Of the n numbers at x as many as a vector has, and then 0.
static inline floats load_some(const bf16 *x, int64_t n) {
    if (n >= LANES) return load_bf16(x);
    bf16 some[LANES] = {0};
    if (n > 0) __builtin_memcpy(some, x, n * sizeof(bf16));
    return load_bf16(some);
}

// The unit of a row of n numbers, RUN at most and a multiple of 8: NaN where one is not finite. In it the row's length,
// sqrt(most * sum) at most, is 46300 or less, so that two such rows multiply to less than 2^31, and so do all parts of
// them (Cauchy and Schwarz).
static inline float unit_of_row(const bf16 *x, int64_t n) {
    floats most = broadcast(0), sum = broadcast(0);
    for (int64_t i = 0; i < n; i += LANES) {
        const floats size = size_of(load_some(x + i, n - i));
        most = maximum(most, size);
        sum = sum + size;
    }
    const float largest = maximum_of(most), total = sum_of(sum);
    const float length = sqrtf(largest) * sqrtf(total) * (1 / 46300.f), size = largest * (1 / 32767.f);
    return total < INFINITY ? length > size ? length : size : NAN;
}

// The row in its unit, 0 where that is next to nothing or NaN; up to LANES more are written.
static inline void row_to_pairs(const bf16 *x, int64_t n, float unit, int32_t *pairs) {
    const floats factor = broadcast(unit > 1e-36f ? 1 / unit : 0);
    for (int64_t i = 0; i < n; i += LANES) store_pairs(pairs + i / 2, round_to_ints(load_some(x + i, n - i) * factor));
}

// totals [ROWS, WIDTH] = x [count, ROWS] times panel [count, WIDTH], of pairs.
static inline __attribute__((always_inline)) void multiply_pairs(const int32_t *x, const int32_t *panel, int64_t count,
                                                                 ints totals[][2]) {
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; r++) totals[r][0] = totals[r][1] = (ints){0};
    for (int64_t p = 0; p < count; p++, x += ROWS, panel += WIDTH) {
        __builtin_prefetch(x + 24 * ROWS, 0, 3);
        const ints left = load_words((const uint32_t *)panel), right = load_words((const uint32_t *)panel + LANES);
#pragma GCC unroll 12
        for (int r = 0; r < ROWS; r++) {
            const ints pair = x[r] - (ints){0};  // in each lane
            totals[r][0] = add_pairs(totals[r][0], pair, left);
            totals[r][1] = add_pairs(totals[r][1], pair, right);
        }
    }
}

// Rows [count, n], `stride` apart, as columns of pairs: panel [n / 2, WIDTH] and units [WIDTH], 0 where there is none.
static void fill_panel_of_pairs(const bf16 *rows, int64_t stride, int64_t count, int64_t n, int32_t *panel,
                                float *units) {
    int32_t pairs[8][RUN / 2 + LANES];
    for (int64_t column = 0; column < WIDTH; column++)
        units[column] = column < count ? unit_of_row(rows + column * stride, n) : 0;
    for (int64_t column = 0; column < WIDTH; column += 8) {
        for (int64_t j = 0; j < least(8, count - column); j++)
            row_to_pairs(rows + (column + j) * stride, n, units[column + j], pairs[j]);
        fill_columns((const uint16_t *)pairs, 2 * (RUN / 2 + LANES), count - column, n, 2, (uint32_t *)panel + column);
    }
}
#line 43 "csrc/int4.c"
#endif
#line 1 "csrc/many_rows.h"
// Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
//
// Many rows of activations, in tiles of ROWS; weights made ready in the first cache, a panel at a time.

// At most: rows to a unit of work, and panels side by side in it. What of x meets these panels stays in the second
// cache meanwhile; with one of them it would come from beyond it each time.
enum { TALL = 43 * ROWS, SIDE = 8 };

_Static_assert(ROWS <= 12, "Product.work has room for 12 rows more");

// The calling thread's share of y = x W.T.
static void many_rows(const Product *c) {
    const int64_t k = c->weight.k, n = c->weight.n, tiles = (c->rows + ROWS - 1) / ROWS;
    const int64_t parts = (tiles * ROWS + TALL - 1) / TALL, tall = (tiles + parts - 1) / parts;  // in tiles
    int64_t from, to;
    my_share(tiles, 1, &from, &to);
    for (int64_t t = from; t < to; t++) pack_tile(c, t);
    GOMP_barrier();

    Panel panel;
    float sums[SIDE][TALL * WIDTH] __attribute__((aligned(64)));
    const int64_t columns = n / WIDTH;
    my_share(columns * parts, 1, &from, &to);
    for (int64_t unit = from, wide; unit < to; unit += wide) {
        const int64_t column = unit % columns, first = unit / columns * tall;
        const int64_t last = least(first + tall, tiles);
        wide = least(SIDE, least(columns - column, to - unit));
        for (int64_t side = 0; side < wide; side++)
            __builtin_memset(sums[side], 0, (last - first) * ROWS * WIDTH * sizeof(float));
        for (int64_t k0 = 0; k0 < k; k0 += PANEL) {
            const int64_t some = least(k - k0, PANEL);
            for (int64_t side = 0; side < wide; side++) {
                const int64_t output = (column + side) * WIDTH;
                const uint32_t *ahead = words_at(&c->weight, output, (k0 + PANEL) / 8);
                fill_panel(&c->weight, output, k0, some, &panel);
                for (int64_t t = first; t < last; t++, ahead = NULL)
                    multiply_tile(c, t, k0, some, &panel, ahead, sums[side] + (t - first) * ROWS * WIDTH);
            }
        }
        for (int64_t row = first * ROWS; row < last * ROWS && row < c->rows; row++)
            for (int64_t side = 0; side < wide; side++) {
                const float *sum = sums[side] + (row - first * ROWS) * WIDTH;
                store_two_bf16(c->y + row * n + (column + side) * WIDTH, load(sum), load(sum + LANES));
            }
    }
}

static void product_body(void *call) { many_rows(call); }

void int4_product(const Product *call, int threads) { run(product_body, call, threads); }
#line 45 "csrc/int4.c"
#line 1 "csrc/dense.h"
// Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
//
// Many rows times bfloat16 weights, as the vision tower's linear layers: as many_rows.h, in fixed point where a lane
// multiplies two 16-bit integers at once (pairs.h), else in cells.

#ifdef HAS_PAIRS

enum { PER_FACTOR = 2, DEPTH = RUN };  // numbers to what a lane multiplies at once; inputs to a panel
typedef int32_t factor;

// `some` inputs of ROWS rows, `stride` apart, `count` of which there are: factors [some / 2, ROWS], units [ROWS].
static void spread_rows(const bf16 *x, int64_t stride, int64_t count, int64_t some, factor *factors, float *units) {
    factor row[RUN / 2 + LANES];
    for (int64_t r = 0; r < ROWS; r++) units[r] = r < count ? unit_of_row(x + r * stride, some) : 0;
    for (int64_t r = 0; r < count; r++) {
        row_to_pairs(x + r * stride, some, units[r], row);
        for (int64_t p = 0; p < some / 2; p++) factors[p * ROWS + r] = row[p];
    }
}

static void spread_weights(const bf16 *rows, int64_t stride, int64_t count, int64_t some, factor *panel, float *units) {
    fill_panel_of_pairs(rows, stride, count, some, panel, units);
}

// sums [ROWS, WIDTH] += x times panel, which are in the units of rows and columns.
static inline __attribute__((always_inline)) void add_dense(const factor *x, const float *row_units,
                                                            const factor *panel, const float *units, int64_t some,
                                                            float *sums) {
    ints totals[ROWS][2];
    const floats left = load(units), right = load(units + LANES);
    multiply_pairs(x, panel, some / 2, totals);
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; r++, sums += WIDTH) {
        const floats unit = broadcast(row_units[r]);
        store(sums, fmadd(to_floats(totals[r][0]), left * unit, load(sums)));
        store(sums + LANES, fmadd(to_floats(totals[r][1]), right * unit, load(sums + LANES)));
    }
}

#else

enum { PER_FACTOR = PER_CELL, DEPTH = PANEL };
typedef cell factor;

static void spread_rows(const bf16 *x, int64_t stride, int64_t count, int64_t some, factor *factors, float *units) {
    (void)units;  // they are 1
    for (int64_t r = 0; r < count; r++)
        for (int64_t p = 0; p < some / PER_CELL; p++) factors[p * ROWS + r] = cell_of(x + r * stride + p * PER_CELL);
}

static void spread_weights(const bf16 *rows, int64_t stride, int64_t count, int64_t some, factor *panel, float *units) {
    (void)units;
    for (int64_t column = 0; column < WIDTH; column += 8)
        fill_columns(rows + column * stride, stride, count - column, some, PER_CELL, (uint32_t *)panel + column);
}

static inline __attribute__((always_inline)) void add_dense(const factor *x, const float *row_units,
                                                            const factor *panel, const float *units, int64_t some,
                                                            float *sums) {
    (void)row_units, (void)units;
    multiply_rows(x, 1, ROWS, panel, some / PER_CELL, ROWS, 2, sums);
}

#endif

// How much there is to do, and what of x and the weights is multiplied, in the work's memory.
typedef struct {
    int64_t tiles, columns, runs;  // of ROWS rows, of WIDTH outputs, of DEPTH inputs
    factor *rows, *weights;        // [tiles, k / PER_FACTOR, ROWS], [columns, k / PER_FACTOR, WIDTH]
    float *row_units, *units;      // [tiles, runs, ROWS], [columns, runs, WIDTH]
} Spread;

static Spread spread_at(const Dense *c) {
    Spread s;
    s.tiles = (c->rows + ROWS - 1) / ROWS;
    s.columns = (c->n + WIDTH - 1) / WIDTH;
    s.runs = (c->k + DEPTH - 1) / DEPTH;
    uintptr_t at = (uintptr_t)c->work;
    s.rows = take(&at, s.tiles * ROWS * (c->k / PER_FACTOR) * sizeof(factor));
    s.weights = take(&at, s.columns * WIDTH * (c->k / PER_FACTOR) * sizeof(factor));
    s.row_units = take(&at, s.tiles * ROWS * s.runs * sizeof(float));
    s.units = take(&at, s.columns * WIDTH * s.runs * sizeof(float));
    return s;
}

// The sums of a row, WIDTH outputs, `count` of which there are.
static void store_outputs(const float *sums, const bf16 *bias, int64_t count, bf16 *y) {
    bf16 some[2][WIDTH] = {{0}};
    if (bias && count < WIDTH) bias = __builtin_memcpy(some[0], bias, count * sizeof(bf16));
    const bf16 *b = bias ? bias : some[0];
    bf16 *to = count < WIDTH ? some[1] : y;
    store_two_bf16(to, load(sums) + load_bf16(b), load(sums + LANES) + load_bf16(b + LANES));
    if (count < WIDTH) __builtin_memcpy(y, to, count * sizeof(bf16));
}

typedef void Spreading(const bf16 *rows, int64_t stride, int64_t count, int64_t some, factor *factors, float *units);

// The calling thread's share of x, ROWS rows at a time, or of the weights, WIDTH: `count` rows, `each` at a time.
static void my_spreading(const Dense *c, const bf16 *rows, int64_t count, int64_t each, Spreading spread,
                         factor *factors, float *units) {
    int64_t from, to;
    my_share((count + each - 1) / each, 1, &from, &to);
    for (int64_t t = from * each; t < to * each; t += each)
        for (int64_t i = 0, run = 0; i < c->k; i += DEPTH, run++)
            spread(rows + t * c->k + i, c->k, least(count - t, each), least(c->k - i, DEPTH),
                   factors + t * (c->k / PER_FACTOR) + i / PER_FACTOR * each,
                   units + t * ((c->k + DEPTH - 1) / DEPTH) + run * each);
}

static void dense_body(void *call) {
    const Dense *c = call;
    const Spread s = spread_at(c);
    const int64_t k = c->k / PER_FACTOR, parts = (s.tiles * ROWS + TALL - 1) / TALL;
    const int64_t tall = (s.tiles + parts - 1) / parts;  // in tiles
    int64_t from, to;
    my_spreading(c, c->x, c->rows, ROWS, spread_rows, s.rows, s.row_units);
    my_spreading(c, c->weight, c->n, WIDTH, spread_weights, s.weights, s.units);
    GOMP_barrier();

    float sums[SIDE][TALL * WIDTH] __attribute__((aligned(64)));
    my_share(s.columns * parts, 1, &from, &to);
    for (int64_t unit = from, wide; unit < to; unit += wide) {
        const int64_t column = unit % s.columns, first = unit / s.columns * tall, last = least(first + tall, s.tiles);
        wide = least(SIDE, least(s.columns - column, to - unit));
        for (int64_t side = 0; side < wide; side++)
            __builtin_memset(sums[side], 0, (last - first) * ROWS * WIDTH * sizeof(float));
        for (int64_t i = 0; i < s.runs; i++)
            for (int64_t j = column; j < column + wide; j++)
                for (int64_t t = first; t < last; t++)
                    add_dense(s.rows + (t * k + i * (DEPTH / PER_FACTOR)) * ROWS, s.row_units + (t * s.runs + i) * ROWS,
                              s.weights + (j * k + i * (DEPTH / PER_FACTOR)) * WIDTH,
                              s.units + (j * s.runs + i) * WIDTH, least(c->k - i * DEPTH, DEPTH),
                              sums[j - column] + (t - first) * ROWS * WIDTH);
        for (int64_t row = first * ROWS; row < last * ROWS && row < c->rows; row++)
            for (int64_t j = column; j < column + wide; j++)
                store_outputs(sums[j - column] + (row - first * ROWS) * WIDTH, c->bias ? c->bias + j * WIDTH : NULL,
                              least(c->n - j * WIDTH, WIDTH), c->y + row * c->n + j * WIDTH);
    }
}

void int4_dense(const Dense *call, int threads) { run(dense_body, call, threads); }
#line 46 "csrc/int4.c"
#line 1 "csrc/elementwise.h"
// Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
//
// Operations on each number or row, which take most of a layer's steps and little of its time.

static const float LOG2_E = 1.44269504f;

// 2^(power + part), the latter by its Taylor series: good to 2e-7. x is -126 to 127.
static inline floats exp2_ps(floats x) {
    static const float c[7] =
        {1, 0.693147181f, 0.240226507f, 0.0555041087f, 0.00961812911f, 0.00133335581f, 0.000154035304f};
    floats power = round_to_whole(x), part = x - power, y = broadcast(c[6]);
    for (int i = 5; i >= 0; i--) y = fmadd(y, part, broadcast(c[i]));
    return times_power_of_2(y, power);
}

// Below e^-87 it is 0, and so are the weights of what is not seen: as the least of numbers they would make sums
// denormal, which takes some CPUs a hundred times as long. NaN stays NaN: of two numbers of which one is NaN, x86 takes
// the second one.
static inline floats exp_ps(floats x) {
    const ints is_none = x <= broadcast(-87);
    x = minimum(broadcast(88), maximum(broadcast(-87), x));
    return (floats)((ints)exp2_ps(x * broadcast(LOG2_E)) & ~is_none);
}

static inline floats gelu_tanh(floats x) {  // x / (1 + exp(-2 z)), z = sqrt(2 / pi) * (x + 0.044715 x^3)
    floats cubic = fmadd(x * x, broadcast(0.044715f), broadcast(1));
    return x / (exp_ps(x * cubic * broadcast(-1.59576912f)) + broadcast(1));
}

// As Gemma3RMSNorm: in float32, times 1 + weight, rounded once.
static void rms_norm(const bf16 *x, const bf16 *weight, int64_t n, float eps, bf16 *y) {
    floats sum = broadcast(0);
    for (int64_t i = 0; i < n; i += LANES) sum = fmadd(load_bf16(x + i), load_bf16(x + i), sum);
    floats scale = broadcast(1 / sqrtf(sum_of(sum) / n + eps));
    for (int64_t i = 0; i < n; i += LANES)
        store_bf16(y + i, load_bf16(x + i) * scale * (load_bf16(weight + i) + broadcast(1)));
}

static void add(const bf16 *x, const bf16 *y, int64_t n, bf16 *sum) {
    for (int64_t i = 0; i < n; i += LANES) store_bf16(sum + i, load_bf16(x + i) + load_bf16(y + i));
}

// y = gelu(gate) * up, or without up, gelu(gate)
static void gated(const bf16 *gate, const bf16 *up, int64_t from, int64_t to, bf16 *y) {
    for (int64_t i = from; i < to; i += LANES) {
        const floats gelu = gelu_tanh(load_bf16(gate + i));
        if (up)
            store_bf16(y + i, round_bf16(gelu) * load_bf16(up + i));
        else
            store_bf16(y + i, gelu);
    }
}

// The rotary embedding: x * cos + rotate_half(x) * sin.
static void rotate(const bf16 *x, const bf16 *cos, const bf16 *sin, int64_t n, bf16 *y) {
    for (int64_t i = 0; i < n / 2; i += LANES) {
        floats a = load_bf16(x + i), b = load_bf16(x + n / 2 + i);
        store_bf16(y + i, fmadd(a, load_bf16(cos + i), -(b * load_bf16(sin + i))));
        store_bf16(y + n / 2 + i, fmadd(b, load_bf16(cos + n / 2 + i), a * load_bf16(sin + n / 2 + i)));
    }
}

static void softmax(float *x, int64_t n) {
    floats most = load(x), sum = broadcast(0);
    for (int64_t i = LANES; i < n; i += LANES) most = maximum(most, load(x + i));
    most = broadcast(maximum_of(most));
    for (int64_t i = 0; i < n; i += LANES) {
        floats e = exp_ps(load(x + i) - most);
        sum = sum + e;
        store(x + i, e);
    }
    floats inverse = broadcast(1 / sum_of(sum));
    for (int64_t i = 0; i < n; i += LANES) store(x + i, load(x + i) * inverse);
}

static void rms_norm_body(void *call) {
    const Norm *c = call;
    int64_t from, to;
    my_share(c->rows, 1, &from, &to);
    for (int64_t row = from; row < to; row++) rms_norm(c->x + row * c->n, c->weight, c->n, c->eps, c->y + row * c->n);
}

void int4_rms_norm(const Norm *call, int threads) { run(rms_norm_body, call, threads); }

static void gated_body(void *call) {
    const Gated *c = call;
    int64_t from, to;
    my_share(c->n, 16, &from, &to);
    gated(c->gate, c->up, from, to, c->y);
}

void int4_gated(const Gated *call, int threads) { run(gated_body, call, threads); }
#line 47 "csrc/int4.c"
#line 1 "csrc/attention.h"
// Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
//
// What a pass through a decoder layer keeps in memory, and the attention in it.

// Between these all threads wait for each other; each computes a share of every one.
typedef struct {
    Step step;
    bf16 *q, *k, *v;  // [rows, heads or kv_heads, head_dim]
    float *scores;    // [rows, heads, padded]
    int64_t padded;   // step.length, rounded up to 16
    float *mixed;     // [threads, rows, heads, head_dim], sums of values
    int64_t threads;
    bf16 *attended;                       // [rows, heads, head_dim]
    bf16 *attention_update, *mlp_update;  // [rows, width], what attention and MLP add
    bf16 *gate, *up;                      // [rows, intermediate]; gelu(gate) * up is written over `gate`
    bf16 *x, *residual;                   // [rows, width], what a product takes, what its result is added to
    void *prepared;                       // x as few_rows wants it, or room for what many_rows makes of it
} Pass;

// Places what all threads share; returns its size in bytes. With memory NULL only the size has a meaning.
static size_t place_shared(Pass *p, void *memory) {
    uintptr_t at = (uintptr_t)memory;
    const Layer *l = p->step.layer;
    const int64_t rows = p->step.rows, number = rows * sizeof(bf16);
    p->scores = take(&at, rows * l->heads * p->padded * sizeof(float));
    p->mixed = take(&at, p->threads * rows * l->q.n * sizeof(float));
    p->q = take(&at, number * l->q.n);
    p->k = take(&at, number * l->k.n);
    p->v = take(&at, number * l->v.n);
    p->attended = take(&at, number * l->q.n);
    p->attention_update = take(&at, number * l->o.n);
    p->mlp_update = take(&at, number * l->down.n);
    p->gate = take(&at, number * l->gate.n);
    p->up = take(&at, number * l->up.n);
    return at - (uintptr_t)memory;
}

// Likewise what all threads share of several rows, and each has of its own of a single one.
static size_t place_rows(Pass *p, void *memory) {
    uintptr_t at = (uintptr_t)memory;
    const Layer *l = p->step.layer;
    const int64_t rows = p->step.rows, prepared = rows <= p->step.few ? rows : rows + ROWS;
    p->x = take(&at, rows * l->q.k * sizeof(bf16));
    p->residual = take(&at, rows * l->q.k * sizeof(bf16));
    // nine bytes for two inputs are enough for fixed point, and what `int4_product` asks for
    p->prepared = take(&at, prepared * most(most(l->q.k, l->o.k), l->down.k) / 2 * 9);
    return at - (uintptr_t)memory;
}

// Partial sums of a score, so that one need not wait for another; NEON and AVX2 sum up alike.
enum { CHAINS = LANES == 16 ? 2 : 16 / LANES };

// scores = scaling * q . keys, positions from .. to, -1e30 where masked, for heads of one group, from `first` on;
// `heads` is a constant wherever this is inlined. A key is read, and made to cells, once for all of them.
static inline __attribute__((always_inline)) void score(const Pass *p, int64_t first, int heads, int64_t from,
                                                        int64_t to) {
    enum { STEP = LANES * PER_CELL };
    const Step *s = &p->step;
    const Layer *l = s->layer;
    const int64_t n = l->head_dim, count = n / PER_CELL;
    const bf16 *keys = s->keys + first / (l->heads / l->kv_heads) * s->head_stride;
    const uint8_t *mask = s->mask ? s->mask + first / l->heads * s->mask_stride : NULL;
    cell query[heads * count];
    for (int64_t i = 0; i < heads * count; i++) query[i] = cell_of(p->q + first * n + i * PER_CELL);
    for (int64_t at = from; at < to; at++) {
        float *scores = p->scores + first * p->padded + at;
        if (at >= s->length || (mask && !mask[at])) {
            for (int h = 0; h < heads; h++) scores[h * p->padded] = -1e30f;
            continue;
        }
        floats sum[4][CHAINS];
        for (int h = 0; h < heads; h++)
            for (int c = 0; c < CHAINS; c++) sum[h][c] = broadcast(0);
        int64_t i = 0;
        for (; i + CHAINS * STEP <= n; i += CHAINS * STEP)
            for (int c = 0; c < CHAINS; c++) {
                cells key = cells_of(keys + at * n + i + c * STEP);
                for (int h = 0; h < heads; h++)
                    sum[h][c] = add_product(sum[h][c], load_cells(query + h * count + i / PER_CELL + c * LANES), key);
            }
        for (; i < n; i += STEP)
            for (int h = 0; h < heads; h++)
                sum[h][0] =
                    add_product(sum[h][0], load_cells(query + h * count + i / PER_CELL), cells_of(keys + at * n + i));
        for (int h = 0; h < heads; h++) {
            for (int c = CHAINS / 2; c; c /= 2)
                for (int j = 0; j < c; j++) sum[h][j] = sum[h][j] + sum[h][j + c];
            scores[h * p->padded] = sum_of(sum[h][0]) * l->scaling;
        }
    }
}

// The calling thread's share of the scores, by positions.
static void my_scores(const Pass *p) {
    const Layer *l = p->step.layer;
    const int64_t group = l->heads / l->kv_heads;
    int64_t from, to;
    my_share(p->padded, 16, &from, &to);
    for (int64_t head = 0; head < p->step.rows * l->heads;) {
        const int64_t end = head + group;
        for (; head + 4 <= end; head += 4) score(p, head, 4, from, to);
        for (; head + 2 <= end; head += 2) score(p, head, 2, from, to);
        if (head < end) score(p, head++, 1, from, to);
    }
}

static void my_softmax(const Pass *p) {
    int64_t from, to;
    my_share(p->step.rows * p->step.layer->heads, 1, &from, &to);
    for (int64_t h = from; h < to; h++) softmax(p->scores + h * p->padded, p->padded);
}

// From LONG positions on values are mixed by positions and not by columns: PART at a time, which stay in the second
// cache until all their columns are mixed.
enum { LONG = 2048, PART = 128 };

// WIDTH columns of scores . values, positions from .. to, added to sums [rows, heads, head_dim], for so many heads of
// one group; `heads` is a constant wherever this is inlined.
static inline __attribute__((always_inline)) void mix(const Pass *p, int64_t first, int64_t column, int heads,
                                                      int64_t from, int64_t to, float *sums) {
    const Step *s = &p->step;
    const int64_t n = s->layer->head_dim, group = s->layer->heads / s->layer->kv_heads;
    const bf16 *value = s->values + first / group * s->head_stride + from * n + column;
    floats sum[4][2];
    sums += first * n + column;
    for (int h = 0; h < heads; h++)
        for (int half = 0; half < 2; half++) sum[h][half] = load(sums + h * n + half * LANES);
    for (int64_t at = from; at < to; at++, value += n) {
        floats low = load_bf16(value), high = load_bf16(value + LANES);
        __builtin_prefetch(value + 16 * n, 0, 3);  // a stride that no hardware prefetcher follows
        for (int h = 0; h < heads; h++) {
            floats weight = broadcast(p->scores[(first + h) * p->padded + at]);
            sum[h][0] = fmadd(weight, low, sum[h][0]);
            sum[h][1] = fmadd(weight, high, sum[h][1]);
        }
    }
    for (int h = 0; h < heads; h++)
        for (int half = 0; half < 2; half++) store(sums + h * n + half * LANES, sum[h][half]);
}

// Likewise, for all heads of a group.
static void mix_group(const Pass *p, int64_t head, int64_t column, int64_t from, int64_t to, float *sums) {
    const int64_t end = head + p->step.layer->heads / p->step.layer->kv_heads;
    for (; head + 4 <= end; head += 4) mix(p, head, column, 4, from, to, sums);
    for (; head + 2 <= end; head += 2) mix(p, head, column, 2, from, to, sums);
    if (head < end) mix(p, head, column, 1, from, to, sums);
}

// The calling thread's share of the attended values of a long cache: some positions, then some heads of all threads'
// sums.
static void my_long_mixture(const Pass *p) {
    const Layer *l = p->step.layer;
    const int64_t n = l->head_dim, group = l->heads / l->kv_heads, heads = p->step.rows * l->heads;
    float *own = p->mixed + omp_get_thread_num() * heads * n;
    int64_t from, to;
    __builtin_memset(own, 0, heads * n * sizeof(float));
    my_share(p->step.length, 1, &from, &to);
    for (int64_t at = from; at < to; at += PART)
        for (int64_t head = 0; head < heads; head += group)
            for (int64_t column = 0; column < n; column += WIDTH)
                mix_group(p, head, column, at, at + PART < to ? at + PART : to, own);
    GOMP_barrier();
    my_share(heads, 1, &from, &to);
    for (int64_t i = from * n; i < to * n; i += LANES) {
        floats sum = load(p->mixed + i);
        for (int64_t t = 1; t < omp_get_num_threads(); t++) sum = sum + load(p->mixed + t * heads * n + i);
        store_bf16(p->attended + i, sum);
    }
}

// The calling thread's share of the attended values, by columns of WIDTH.
static void my_mixture(const Pass *p) {
    const Layer *l = p->step.layer;
    const int64_t n = l->head_dim, columns = n / WIDTH, group = l->heads / l->kv_heads;
    if (p->step.length >= LONG) {
        my_long_mixture(p);
        return;
    }
    int64_t from, to;
    my_share(p->step.rows * l->kv_heads * columns, 1, &from, &to);
    for (int64_t unit = from; unit < to; unit++) {
        const int64_t first = unit / columns * group, column = unit % columns * WIDTH;
        for (int64_t h = first; h < first + group; h++)
            for (int64_t i = 0; i < WIDTH; i += LANES) store(p->mixed + h * n + column + i, broadcast(0));
        mix_group(p, first, column, 0, p->step.length, p->mixed);
        for (int64_t h = first; h < first + group; h++)
            for (int64_t i = column; i < column + WIDTH; i += LANES)
                store_bf16(p->attended + h * n + i, load(p->mixed + h * n + i));
    }
}
#line 48 "csrc/int4.c"
#ifdef HAS_PAIRS
#line 1 "csrc/square.h"
// Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
//
// Attention in which every query sees every key, as in the vision tower, in fixed point (pairs.h): twice as many
// products at once as flash.h has.
//
// Queries stand side by side, WIDTH of them, as columns: of scores, of weights and of the sums of values, so that a
// softmax goes along a lane. They pass over a head's keys and values, block by block, which are packed once for all.

enum { KEYS = 6 * ROWS };  // to a block; an even number

typedef struct {
    int64_t dim, tall;   // numbers to a head, the same rounded up to ROWS
    int32_t *keys;       // [blocks, KEYS / ROWS, dim / 2, ROWS]
    float *key_units;    // [blocks, KEYS], times what makes a score the exponent of 2
    int32_t *values;     // [blocks, tall / ROWS, KEYS / 2, ROWS], pairs of keys
    float *value_units;  // [blocks, tall]
    int32_t *query;      // [dim / 2, WIDTH]
    float *scores;       // [KEYS, WIDTH]
    int32_t *weights;    // [KEYS / 2, WIDTH]
    float *sums;         // [tall, WIDTH], of weighted values
    float query_units[WIDTH], most[WIDTH], total[WIDTH], down[WIDTH];
} Head;

static size_t place_head(const Attention *c, Head *h, void *memory) {
    uintptr_t at = (uintptr_t)memory;
    const int64_t blocks = (c->keys + KEYS - 1) / KEYS;
    h->dim = c->dim;
    h->tall = (c->dim + ROWS - 1) / ROWS * ROWS;
    h->keys = take(&at, blocks * KEYS * (c->dim / 2) * sizeof(int32_t));
    h->key_units = take(&at, blocks * KEYS * sizeof(float));
    h->values = take(&at, blocks * (KEYS / 2) * h->tall * sizeof(int32_t));
    h->value_units = take(&at, blocks * h->tall * sizeof(float));
    h->query = take(&at, c->dim / 2 * WIDTH * sizeof(int32_t));
    h->scores = take(&at, KEYS * WIDTH * sizeof(float));
    h->weights = take(&at, KEYS / 2 * WIDTH * sizeof(int32_t));
    h->sums = take(&at, h->tall * WIDTH * sizeof(float));
    return at - (uintptr_t)memory;
}

static void pack_keys(const Attention *c, const bf16 *keys, Head *h) {
    const int64_t pairs = h->dim / 2, stride = c->key_strides[2], end = (c->keys + KEYS - 1) / KEYS * KEYS;
    int32_t row[RUN / 2 + LANES] = {0};
    for (int64_t j = 0; j < end; j++) h->key_units[j] = j < c->keys ? unit_of_row(keys + j * stride, h->dim) : 0;
    for (int64_t j = 0; j < end; j++) {
        int32_t *to = h->keys + j / ROWS * pairs * ROWS + j % ROWS;
        if (j < c->keys) row_to_pairs(keys + j * stride, h->dim, h->key_units[j], row);
        for (int64_t i = 0; i < pairs; i++) to[i * ROWS] = row[i];
        h->key_units[j] *= c->scaling * LOG2_E;
    }
}

// Of a block each column has a unit. The sizes of a column's numbers sum up to 65535 units or less, and a weight is
// 2^15 at most.
static void pack_values(const Attention *c, const bf16 *values, int64_t block, Head *h) {
    const int64_t stride = c->value_strides[2], count = least(c->keys - block * KEYS, KEYS);
    int32_t pairs[KEYS / 2][RUN + LANES];
    float units[RUN + LANES];
    values += block * KEYS * stride;
    for (int64_t i = 0; i < h->tall; i += LANES) {
        floats most = broadcast(0), sum = broadcast(0);
        for (int64_t j = 0; j < count; j++) {
            const floats size = size_of(load_some(values + j * stride + i, h->dim - i));
            most = maximum(most, size);
            sum = sum + size;
        }
        const floats unit = maximum(sum * broadcast(1.f / 65500), most * broadcast(1.f / 32767));
        const ints finite = sum < broadcast(INFINITY), some = finite & (unit > broadcast(1e-36f));
        const floats factor = (floats)((ints)(broadcast(1) / unit) & some);
        store(units + i, (floats)((ints)unit | ~finite));
        for (int64_t j = 0; j < KEYS; j += 2) {
            ints whole[2] = {{0}};
            for (int64_t n = j; n < j + 2 && n < count; n++)
                whole[n - j] = round_to_ints(load_some(values + n * stride + i, h->dim - i) * factor);
            const ints pair = (whole[0] & 0xFFFF) | whole[1] << 16;
            __builtin_memcpy(pairs[j / 2] + i, &pair, sizeof pair);
        }
    }
    __builtin_memcpy(h->value_units + block * h->tall, units, h->tall * sizeof(float));
    for (int64_t i = 0; i < h->tall; i += ROWS)
        for (int64_t p = 0; p < KEYS / 2; p++)
            __builtin_memcpy(h->values + ((block * h->tall + i) * (KEYS / 2) + p * ROWS), pairs[p] + i,
                             ROWS * sizeof(int32_t));
}

// scores [KEYS, WIDTH] of a block of keys, `count` of them, as exponents of 2; `most` is the highest so far.
static void square_scores(const Head *h, int64_t block, int64_t count, floats most[2]) {
    const int64_t pairs = h->dim / 2;
    const int32_t *keys = h->keys + block * KEYS * pairs;
    const float *units = h->key_units + block * KEYS;
    const floats left = load(h->query_units), right = load(h->query_units + LANES);
    float *scores = h->scores;
    for (int64_t j = 0; j < count; j += ROWS, units += ROWS, scores += ROWS * WIDTH) {
        ints totals[ROWS][2];
        floats tile[ROWS][2];
        multiply_pairs(keys + j * pairs, h->query, pairs, totals);
#pragma GCC unroll 12
        for (int r = 0; r < ROWS; r++) {
            tile[r][0] = to_floats(totals[r][0]) * (left * broadcast(units[r]));
            tile[r][1] = to_floats(totals[r][1]) * (right * broadcast(units[r]));
        }
        if (j + ROWS > count)
#pragma GCC unroll 12
            for (int r = 0; r < ROWS; r++)
                if (j + r >= count) tile[r][0] = tile[r][1] = broadcast(NOTHING);
#pragma GCC unroll 12
        for (int r = 0; r < ROWS; r++)
            for (int half = 0; half < 2; half++) store(scores + r * WIDTH + half * LANES, tile[r][half]);
        for (int half = 0; half < 2; half++) {
            floats highest[3] = {tile[0][half], tile[1][half], tile[2][half]};
#pragma GCC unroll 12
            for (int r = 3; r < ROWS; r++) highest[r % 3] = maximum(highest[r % 3], tile[r][half]);
            most[half] = maximum(most[half], maximum(highest[0], maximum(highest[1], highest[2])));
        }
    }
    for (; scores < h->scores + KEYS * WIDTH; scores += LANES) store(scores, broadcast(NOTHING));
}

// 2^x, good to 3e-6; where that is next to nothing, 2^-126; NaN where x is.
static inline floats weight_of(floats x) {
    x = maximum(broadcast(-126), x);
    floats power = round_to_whole(x), part = x - power, y = broadcast(0.00957010221f);
    y = fmadd(y, part, broadcast(0.0559178591f));
    y = fmadd(y, part, broadcast(0.240247443f));
    y = fmadd(y, part, broadcast(0.693121791f));
    return times_power_of_2(fmadd(y, part, broadcast(0.999999285f)), power);
}

// Scores -> weights against the highest score, `most`, which weighs a little less than 2^15; `down` is what brings
// earlier sums to that.
static void square_weights(Head *h, const floats most[2]) {
    for (int half = 0; half < 2; half++) {
        const float *scores = h->scores + half * LANES;
        int32_t *weights = h->weights + half * LANES;
        const floats down = weight_of(load(h->most + half * LANES) - most[half]);
        const floats shift = most[half] - broadcast(14.99f);
        floats total = load(h->total + half * LANES) * down;
        for (int64_t j = 0; j < KEYS; j += 2) {
            const floats weight = weight_of(load(scores + j * WIDTH) - shift);
            const floats next = weight_of(load(scores + (j + 1) * WIDTH) - shift);
            const ints pair = round_to_ints(weight) | round_to_ints(next) << 16;
            total = total + (weight + next);
            __builtin_memcpy(weights + j / 2 * WIDTH, &pair, sizeof pair);
        }
        store(h->most + half * LANES, most[half]);
        store(h->total + half * LANES, total);
        store(h->down + half * LANES, down);
    }
}

// sums [tall, WIDTH] += values of a block, weighed.
static void square_values(const Head *h, int64_t block) {
    const int32_t *values = h->values + block * h->tall * (KEYS / 2);
    const float *units = h->value_units + block * h->tall;
    const floats left = load(h->down), right = load(h->down + LANES);
    float *sums = h->sums;
    for (int64_t i = 0; i < h->tall; i += ROWS, units += ROWS, sums += ROWS * WIDTH) {
        ints totals[ROWS][2];
        multiply_pairs(values + i * (KEYS / 2), h->weights, KEYS / 2, totals);
#pragma GCC unroll 12
        for (int r = 0; r < ROWS; r++) {
            float *sum = sums + r * WIDTH;
            store(sum, fmadd(to_floats(totals[r][0]), broadcast(units[r]), load(sum) * left));
            store(sum + LANES, fmadd(to_floats(totals[r][1]), broadcast(units[r]), load(sum + LANES) * right));
        }
    }
}

// Some queries, WIDTH at most, over all keys; `out` is of the first one.
static void square_queries(const Attention *c, const bf16 *query, int64_t count, Head *h, bf16 *out) {
    bf16 columns[RUN + ROWS][WIDTH];
    fill_panel_of_pairs(query, c->query_strides[2], count, h->dim, h->query, h->query_units);
    __builtin_memset(h->sums, 0, h->tall * WIDTH * sizeof(float));
    for (int64_t q = 0; q < WIDTH; q++) h->most[q] = NOTHING, h->total[q] = 0;
    for (int64_t block = 0; block * KEYS < c->keys; block++) {
        floats most[2] = {load(h->most), load(h->most + LANES)};
        square_scores(h, block, least(c->keys - block * KEYS, KEYS), most);
        square_weights(h, most);
        square_values(h, block);
    }
    const floats left = broadcast(1) / load(h->total), right = broadcast(1) / load(h->total + LANES);
    for (int64_t i = 0; i < h->dim; i++)
        store_two_bf16(columns[i], load(h->sums + i * WIDTH) * left, load(h->sums + i * WIDTH + LANES) * right);
    for (int64_t q = 0; q < count; q++)
        for (int64_t i = 0; i < h->dim; i++) out[q * c->heads * h->dim + i] = columns[i][q];
}

// A unit of work is a head of one sequence, or where there are few heads to each thread, a part of its queries.
static void square_body(void *units) {
    Units *s = units;
    const Attention *c = s->call;
    Head h;
    place_head(c, &h, my_memory(s));
    const int64_t heads = c->batch * c->heads, panels = (c->queries + WIDTH - 1) / WIDTH;
    const int64_t parts = least(panels, (2 * omp_get_num_threads() + heads - 1) / heads);
    for (int64_t unit; (unit = next_unit(s)) < heads * parts;) {
        const int64_t sequence = unit / parts / c->heads, head = unit / parts % c->heads, part = unit % parts;
        const int64_t kv_head = head / (c->heads / c->kv_heads);
        const bf16 *query = c->query + sequence * c->query_strides[0] + head * c->query_strides[1];
        pack_keys(c, c->key + sequence * c->key_strides[0] + kv_head * c->key_strides[1], &h);
        const bf16 *values = c->value + sequence * c->value_strides[0] + kv_head * c->value_strides[1];
        for (int64_t block = 0; block * KEYS < c->keys; block++) pack_values(c, values, block, &h);
        for (int64_t panel = panels * part / parts; panel < panels * (part + 1) / parts; panel++) {
            const int64_t q = panel * WIDTH;
            square_queries(c, query + q * c->query_strides[2], least(c->queries - q, WIDTH), &h,
                           c->out + ((sequence * c->queries + q) * c->heads + head) * h.dim);
        }
    }
}
#line 50 "csrc/int4.c"
#endif
#line 1 "csrc/flash.h"
// Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
//
// Attention of many queries, block of keys by block, in the first two caches; both products are `multiply`'s.
//
// A unit of work is some positions of one sequence and all heads that share their keys: TALL_ROWS rows about, which
// pass over the blocks of keys that one of them sees. Scores, sums and the softmax are float32; with BF16
// what is multiplied is bfloat16, the softmax's numerators as well.

enum { BLOCK = 64, TALL_ROWS = 128 };  // keys to a block; rows to a unit

// What a thread has of its own, for `groups` times ROWS rows.
typedef struct {
    int64_t rows, groups, width;  // rows in use; ROWS of them to a group; numbers to a head, rounded up to WIDTH
    cell *query;                  // [groups, dim / PER_CELL, ROWS]
    cell *panel;                  // [dim / PER_CELL, WIDTH] of keys, or [BLOCK / PER_CELL, WIDTH] of values
    float *scores;                // [groups, BLOCK / WIDTH, ROWS, WIDTH]
    cell *weights;                // [groups, ROWS, BLOCK / PER_CELL]
    float *sums;                  // [groups, width / WIDTH, ROWS, WIDTH], of weighted values
    float *most;                  // [groups * ROWS], the highest score so far
    float *total;                 // [groups * ROWS, LANES], sums of weights
    int64_t *first, *end;         // [positions], the keys that each sees
} Unit;

// Where the queries of a unit lie, and their keys.
typedef struct {
    const Attention *call;
    int64_t sequence, kv_head, position, positions, group;
} Place;

static int64_t unit_positions(const Attention *c) {
    const int64_t group = c->heads / c->kv_heads, positions = TALL_ROWS / group;
    return positions ? positions : 1;
}

static size_t place_unit(const Attention *c, Unit *u, void *memory) {
    uintptr_t at = (uintptr_t)memory;
    const int64_t group = c->heads / c->kv_heads, positions = unit_positions(c);
    const int64_t groups = (positions * group + ROWS - 1) / ROWS, rows = groups * ROWS;
    const int64_t cells = most(c->dim, BLOCK) / PER_CELL;
    u->width = (c->dim + WIDTH - 1) / WIDTH * WIDTH;
    u->query = take(&at, rows * (c->dim / PER_CELL) * sizeof(cell));
    u->panel = take(&at, cells * WIDTH * sizeof(cell));
    u->scores = take(&at, rows * BLOCK * sizeof(float));
    u->weights = take(&at, rows * (BLOCK / PER_CELL) * sizeof(cell));
    u->sums = take(&at, rows * u->width * sizeof(float));
    u->most = take(&at, rows * sizeof(float));
    u->total = take(&at, rows * LANES * sizeof(float));
    u->first = take(&at, positions * sizeof(int64_t));
    u->end = take(&at, positions * sizeof(int64_t));
    return at - (uintptr_t)memory;
}

// Row r of a unit is head r / positions of its group, at position r % positions.
static const bf16 *query_at(const Place *p, int64_t row) {
    const Attention *c = p->call;
    const int64_t head = p->kv_head * p->group + row / p->positions, position = p->position + row % p->positions;
    return c->query + p->sequence * c->query_strides[0] + head * c->query_strides[1] + position * c->query_strides[2];
}

static void begin_unit(const Place *p, Unit *u) {
    const Attention *c = p->call;
    const int64_t count = c->dim / PER_CELL;
    u->rows = p->positions * p->group;
    u->groups = (u->rows + ROWS - 1) / ROWS;
    for (int64_t row = 0; row < u->groups * ROWS; row++) {
        cell *to = u->query + row / ROWS * count * ROWS + row % ROWS;
        const bf16 *from = row < u->rows ? query_at(p, row) : NULL;
        for (int64_t i = 0; i < count; i++) to[i * ROWS] = from ? cell_of(from + i * PER_CELL) : 0;
        u->most[row] = NOTHING;
        store(u->total + row * LANES, broadcast(0));
    }
    __builtin_memset(u->weights, 0, u->groups * ROWS * (BLOCK / PER_CELL) * sizeof(cell));
    __builtin_memset(u->sums, 0, u->groups * ROWS * u->width * sizeof(float));
    for (int64_t t = 0; t < p->positions; t++) {
        const int64_t at = p->sequence * c->rule_stride + p->position + t;
        u->first[t] = c->first ? c->first[at] : 0;
        u->end[t] = c->first ? c->end[at] : c->keys;
    }
}

// scores = scaling * q . k of a block of keys, `count` of them.
static void block_scores(const Place *p, Unit *u, int64_t block, int64_t count) {
    const Attention *c = p->call;
    const bf16 *keys = c->key + p->sequence * c->key_strides[0] + p->kv_head * c->key_strides[1];
    const int64_t cells = c->dim / PER_CELL, stride = c->key_strides[2];
    for (int64_t j = 0; j < count; j += WIDTH) {
        for (int64_t k = 0; k < WIDTH; k += 8)
            fill_columns(keys + (block + j + k) * stride, stride, count - j - k, c->dim, PER_CELL,
                         (uint32_t *)u->panel + k);
        for (int64_t g = 0; g < u->groups; g++) {
            float *scores = u->scores + (g * (BLOCK / WIDTH) + j / WIDTH) * ROWS * WIDTH;
            __builtin_memset(scores, 0, ROWS * WIDTH * sizeof(float));
            multiply(u->query + g * cells * ROWS, u->panel, cells, u->rows - g * ROWS, scores);
        }
    }
}

static inline float *score_at(const Unit *u, int64_t row, int64_t j) {
    return u->scores + ((row / ROWS * (BLOCK / WIDTH) + j / WIDTH) * ROWS + row % ROWS) * WIDTH + j % WIDTH;
}

static inline float *sum_at(const Unit *u, int64_t row, int64_t i) {
    return u->sums + (row / ROWS * u->width + i / WIDTH * WIDTH) * ROWS + row % ROWS * WIDTH + i % WIDTH;
}

// Scores of a row -> weights, against the highest score so far; what was summed up before is brought to that too.
static void weigh_row(const Place *p, Unit *u, int64_t row, int64_t block, int64_t count) {
    const Attention *c = p->call;
    const int64_t first = u->first[row % p->positions], end = u->end[row % p->positions];
    const uint8_t *seen = c->seen ? c->seen + p->sequence * c->seen_stride + block : NULL;
    float weights[BLOCK] __attribute__((aligned(64)));
    floats highest = broadcast(NOTHING), scaling = broadcast(c->scaling);
    for (int64_t j = 0; j < BLOCK; j += LANES) store(weights + j, load(score_at(u, row, j)) * scaling);
    if (block < first || block + BLOCK > end || seen)
        for (int64_t j = 0; j < BLOCK; j++)
            if (block + j < first || block + j >= end || j >= count || (seen && !seen[j])) weights[j] = NOTHING;
    for (int64_t j = 0; j < BLOCK; j += LANES) highest = maximum(highest, load(weights + j));
    const float before = u->most[row], now = maximum_of(highest) <= before ? before : maximum_of(highest);
    cell *to = u->weights + row * (BLOCK / PER_CELL);
    if (now == NOTHING) {
        __builtin_memset(to, 0, BLOCK / PER_CELL * sizeof(cell));
        return;
    }
    floats total = load(u->total + row * LANES), shift = broadcast(now);
    if (now > before) {
        float down[LANES];
        store(down, exp_ps(broadcast(before - now)));
        floats factor = broadcast(down[0]);
        total = total * factor;
        u->most[row] = now;
        for (int64_t i = 0; i < c->dim; i += LANES) {
            float *sum = sum_at(u, row, i);
            store(sum, load(sum) * factor);
        }
    }
    for (int64_t j = 0; j < BLOCK; j += LANES) {
        floats weight = exp_ps(load(weights + j) - shift);
        total = total + weight;
        if (PER_CELL == 2)
            store_bf16((bf16 *)to + j, weight);
        else
            store((float *)to + j, weight);
    }
    store(u->total + row * LANES, total);
}

// `columns` of the values of a block, all others 0: panel [BLOCK / PER_CELL, WIDTH]
static void fill_value_panel(const bf16 *values, int64_t stride, int64_t count, int64_t columns, cell *panel) {
    bf16 rows[2][WIDTH] = {{0}};
    for (int64_t j = 0; j < BLOCK; j += PER_CELL, panel += WIDTH) {
        const bf16 *row[2];
        for (int half = 0; half < 2; half++) {
            row[half] = values + (j + half) * stride;
            if (j + half < count && columns == WIDTH) continue;
            __builtin_memset(rows[half], 0, sizeof rows[half]);
            if (j + half < count) __builtin_memcpy(rows[half], row[half], columns * sizeof(bf16));
            row[half] = rows[half];
        }
        store_cells_of_rows(panel, row[0], row[1]);
    }
}

// sums [rows, WIDTH] += weights [rows, BLOCK / PER_CELL] times a panel, the left half of it where no more is in use.
static void add_values(const cell *weights, const cell *panel, int64_t rows, int64_t columns, float *sums) {
    enum { CELLS = BLOCK / PER_CELL };
    if (rows > ROWS / 2 && columns > LANES)
        multiply_rows(weights, CELLS, 1, panel, CELLS, ROWS, 2, sums);
    else if (rows > ROWS / 2)
        multiply_rows(weights, CELLS, 1, panel, CELLS, ROWS, 1, sums);
    else
        multiply_rows(weights, CELLS, 1, panel, CELLS, ROWS / 2, 2, sums);
}

// sums += weights . values of a block of keys.
static void block_values(const Place *p, Unit *u, int64_t block, int64_t count) {
    const Attention *c = p->call;
    const bf16 *values = c->value + p->sequence * c->value_strides[0] + p->kv_head * c->value_strides[1];
    const int64_t stride = c->value_strides[2];
    for (int64_t column = 0; column < u->width; column += WIDTH) {
        const int64_t columns = c->dim - column < WIDTH ? c->dim - column : WIDTH;
        fill_value_panel(values + block * stride + column, stride, count, columns, u->panel);
        for (int64_t g = 0; g < u->groups; g++)
            add_values(u->weights + g * ROWS * (BLOCK / PER_CELL), u->panel, u->rows - g * ROWS, columns,
                       u->sums + (g * u->width + column) * ROWS);
    }
}

static void end_unit(const Place *p, const Unit *u) {
    const Attention *c = p->call;
    for (int64_t row = 0; row < u->rows; row++) {
        const int64_t head = p->kv_head * p->group + row / p->positions;
        const int64_t position = p->position + row % p->positions;
        bf16 *out = c->out + ((p->sequence * c->queries + position) * c->heads + head) * c->dim;
        const float total = sum_of(load(u->total + row * LANES));
        floats factor = broadcast(total == 0 ? 0 : 1 / total);
        for (int64_t i = 0; i < c->dim; i += LANES) {
            bf16 rounded[LANES];
            store_bf16(rounded, load(sum_at(u, row, i)) * factor);
            __builtin_memcpy(out + i, rounded, (c->dim - i < LANES ? c->dim - i : LANES) * sizeof(bf16));
        }
    }
}

static void flash_body(void *units) {
    Units *s = units;
    const Attention *c = s->call;
    Unit u;
    place_unit(c, &u, my_memory(s));
    const int64_t positions = unit_positions(c), parts = (c->queries + positions - 1) / positions;
    const int64_t all = c->batch * c->kv_heads * parts;
    for (int64_t unit; (unit = next_unit(s)) < all;) {
        // the last queries first, as they see most
        const int64_t part = parts - 1 - unit / (c->batch * c->kv_heads), which = unit % (c->batch * c->kv_heads);
        Place p = {.call = c, .sequence = which / c->kv_heads, .kv_head = which % c->kv_heads};
        p.position = part * positions;
        p.positions = c->queries - p.position < positions ? c->queries - p.position : positions;
        p.group = c->heads / c->kv_heads;
        begin_unit(&p, &u);
        int64_t from = c->keys, to = 0;
        for (int64_t t = 0; t < p.positions; t++) {
            if (u.first[t] >= u.end[t]) continue;
            from = u.first[t] < from ? u.first[t] : from;
            to = most(to, u.end[t]);
        }
        for (int64_t block = from; block < to; block += BLOCK) {
            const int64_t count = to - block < BLOCK ? to - block : BLOCK;
            block_scores(&p, &u, block, count);
            for (int64_t row = 0; row < u.rows; row++) weigh_row(&p, &u, row, block, count);
            block_values(&p, &u, block, count);
        }
        end_unit(&p, &u);
    }
}

int int4_attention(const Attention *call, int threads) {
#ifdef HAS_PAIRS
    Head head;
    if (!call->first && !call->seen && call->dim <= RUN)
        return run_units(square_body, call, place_head(call, &head, NULL), threads);
#endif
    Unit unit;
    return run_units(flash_body, call, place_unit(call, &unit, NULL), threads);
}
#line 52 "csrc/int4.c"
#line 1 "csrc/decoder_layer.h"
// Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
//
// Decoder layers, one after the other, for one token of each sequence.

// The rows that the calling thread prepares for a product, or completes after it: its share of several, which it then
// has to show to the others. A single row each thread prepares for itself, which is quicker than waiting for another.
static void my_rows(const Pass *p, int64_t *from, int64_t *to) {
    *from = 0;
    *to = 1;
    if (p->step.rows > 1) my_share(p->step.rows, 1, from, to);
}

// To be called with x [k] for each of `my_rows`, then, by all threads, `show`, then `my_product`.
static void prepare(const Pass *p, const bf16 *x, int64_t k, int64_t row) {
    if (p->step.rows <= p->step.few) to_fixed(x, k, fixed_at(p->prepared, k, row));
}

static void show(const Pass *p) {
    if (p->step.rows > 1) GOMP_barrier();
}

// The calling thread's share of y [rows, n] = x W.T, x [rows, k].
static void my_product(const Pass *p, const Matrix *w, const bf16 *x, bf16 *y) {
    if (p->step.rows <= p->step.few) {
        few_rows(w, p->prepared, p->step.rows, y);
    } else {
        Product call = {.weight = *w, .x = x, .rows = p->step.rows, .work = p->prepared, .y = y};
        many_rows(&call);
        GOMP_barrier();  // before the next product packs
    }
}

static void my_projections(const Pass *p, int64_t first, int64_t last) {
    const Layer *l = p->step.layer;
    const int64_t width = l->q.k;
    for (int64_t r = first; r < last; r++) {
        rms_norm(p->step.hidden + r * width, l->norms[0], width, l->eps, p->x + r * width);
        prepare(p, p->x + r * width, width, r);
    }
    show(p);
    my_product(p, &l->q, p->x, p->q);
    my_product(p, &l->k, p->x, p->k);
    my_product(p, &l->v, p->x, p->v);
}

// Norm and rotary embedding: queries in their place, keys and values to where they are kept.
static void my_heads(const Pass *p) {
    const Step *s = &p->step;
    const Layer *l = s->layer;
    const int64_t n = l->head_dim, all_heads = l->heads + l->kv_heads;
    int64_t from, to;
    my_share(s->rows * all_heads, 1, &from, &to);
    for (int64_t i = from; i < to; i++) {
        const int64_t r = i / all_heads, h = i % all_heads;
        const bf16 *cos = s->cos + r * s->table_stride, *sin = s->sin + r * s->table_stride;
        bf16 normed[n];
        if (h < l->heads) {
            bf16 *q = p->q + (r * l->heads + h) * n;
            rms_norm(q, l->norms[1], n, l->eps, normed);
            rotate(normed, cos, sin, n, q);
        } else {
            int64_t kv = r * l->kv_heads + h - l->heads, at = kv * s->head_stride + (s->length - 1) * n;
            rms_norm(p->k + kv * n, l->norms[2], n, l->eps, normed);
            rotate(normed, cos, sin, n, s->keys + at);
            __builtin_memcpy(s->values + at, p->v + kv * n, n * sizeof(bf16));
        }
    }
}

static void my_output_projection(const Pass *p, int64_t first, int64_t last) {
    const Matrix *o = &p->step.layer->o;
    for (int64_t r = first; r < last; r++) prepare(p, p->attended + r * o->k, o->k, r);
    show(p);
    my_product(p, o, p->attended, p->attention_update);
}

static void my_gate_and_up(const Pass *p, int64_t first, int64_t last) {
    const Layer *l = p->step.layer;
    const int64_t width = l->q.k;
    for (int64_t r = first; r < last; r++) {
        bf16 *x = p->x + r * width, *residual = p->residual + r * width;
        rms_norm(p->attention_update + r * width, l->norms[3], width, l->eps, x);
        add(x, p->step.hidden + r * width, width, residual);
        rms_norm(residual, l->norms[4], width, l->eps, x);
        prepare(p, x, width, r);
    }
    show(p);
    my_product(p, &l->gate, p->x, p->gate);
    my_product(p, &l->up, p->x, p->up);
    int64_t from, to;
    my_share(l->gate.n / 16, 1, &from, &to);  // what this thread has just written, or, with `many_rows`, all have
    for (int64_t at = 0; at < p->step.rows * l->gate.n; at += l->gate.n)
        gated(p->gate, p->up, at + from * 16, at + to * 16, p->gate);
}

static void my_down(const Pass *p, int64_t first, int64_t last) {
    const Matrix *down = &p->step.layer->down;
    for (int64_t r = first; r < last; r++) prepare(p, p->gate + r * down->k, down->k, r);
    show(p);
    my_product(p, down, p->gate, p->mlp_update);
}

static void my_out(const Pass *p, int64_t first, int64_t last) {
    const Layer *l = p->step.layer;
    const int64_t width = l->q.k;
    if (p->step.rows == 1 && omp_get_thread_num()) return;
    for (int64_t r = first; r < last; r++) {
        rms_norm(p->mlp_update + r * width, l->norms[5], width, l->eps, p->x + r * width);
        add(p->x + r * width, p->residual + r * width, width, p->step.out + r * width);
    }
}

static void decoder_layer(const Pass *pass) {
    Pass own = *pass;
    const Pass *p = &own;
    char memory[own.step.rows == 1 ? place_rows(&own, NULL) : 1] __attribute__((aligned(64)));
    if (own.step.rows == 1) place_rows(&own, memory);
    int64_t first, last;
    my_rows(p, &first, &last);

    my_projections(p, first, last);
    GOMP_barrier();
    my_heads(p);
    GOMP_barrier();
    my_scores(p);
    GOMP_barrier();
    my_softmax(p);
    GOMP_barrier();
    my_mixture(p);
    GOMP_barrier();
    my_output_projection(p, first, last);
    GOMP_barrier();
    my_gate_and_up(p, first, last);
    GOMP_barrier();
    my_down(p, first, last);
    GOMP_barrier();
    my_out(p, first, last);
}

// A step's pass, in some memory; returns how many bytes of it. With memory NULL only these have a meaning.
static size_t place_pass(const Step *step, int threads, char *memory, Pass *pass) {
    *pass = (Pass){.step = *step, .padded = (step->length + 15) / 16 * 16, .threads = threads};
    const size_t rows_bytes = step->rows > 1 ? place_rows(pass, memory) : 0;
    return rows_bytes + place_shared(pass, memory + rows_bytes);
}

typedef struct {
    Steps steps;
    int threads;
    char *memory;  // that of the step that wants most
} Passes;

static void decoder_layers_body(void *passes) {
    const Passes *s = passes;
    for (int64_t i = 0; i < s->steps.count; i++) {
        Pass pass;
        if (i) GOMP_barrier();
        place_pass(s->steps.first + i, s->threads, s->memory, &pass);
        decoder_layer(&pass);
    }
}

int int4_decoder_layers(const Steps *call, int threads) {
    Pass pass;
    int64_t bytes = 0;
    for (int64_t i = 0; i < call->count; i++) bytes = most(bytes, place_pass(call->first + i, threads, NULL, &pass));
    Passes passes = {.steps = *call, .threads = threads, .memory = aligned_alloc(64, bytes)};
    if (!passes.memory) return OUT_OF_MEMORY;
    run(decoder_layers_body, &passes, threads);
    free(passes.memory);
    return 0;
}
#line 53 "csrc/int4.c"

// Python compares these with what ctypes makes of its own declarations.
#define EXPORT_SIZE(type) const int32_t int4_sizeof_##type = sizeof(type)
EXPORT_SIZE(Matrix);
EXPORT_SIZE(Product);
EXPORT_SIZE(Dense);
EXPORT_SIZE(Dequantize);
EXPORT_SIZE(Rows);
EXPORT_SIZE(PackAwq);
EXPORT_SIZE(PackAwqs);
EXPORT_SIZE(PackRows);
EXPORT_SIZE(Recover);
EXPORT_SIZE(ReadAhead);
EXPORT_SIZE(Norm);
EXPORT_SIZE(Gated);
EXPORT_SIZE(Layer);
EXPORT_SIZE(Step);
EXPORT_SIZE(Steps);
EXPORT_SIZE(Attention);
"""
