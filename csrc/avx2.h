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
