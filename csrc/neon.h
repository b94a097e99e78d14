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
