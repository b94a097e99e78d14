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
