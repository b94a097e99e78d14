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
