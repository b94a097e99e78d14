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
