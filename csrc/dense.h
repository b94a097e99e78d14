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
