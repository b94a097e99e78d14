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
