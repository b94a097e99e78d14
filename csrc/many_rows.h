// Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
//
// Many rows of activations: weights made to cells in the first cache.

// At most: inputs to a panel, which has 16 KB then; rows to a unit of work, and panels side by side in it. What of x
// meets these panels stays in the second cache meanwhile; with one of them it would come from beyond it each time.
enum { PANEL = 4096 / WIDTH * PER_CELL < 256 ? 4096 / WIDTH * PER_CELL : 256, TALL = 43 * ROWS, SIDE = 8 };

_Static_assert(ROWS <= 12, "Product.work has room for 12 rows more");

// WIDTH outputs, inputs k0 .. k0 + count: panel [count / PER_CELL, WIDTH]
static void fill_panel(const Matrix *w, int64_t output, int64_t k0, int64_t count, cell *panel) {
    for (int half = 0; half < 2; half++, output += LANES)
        for (int64_t octet = k0 / 8; octet < (k0 + count) / 8; octet++)
            store_weights(panel + (octet - k0 / 8) * (8 / PER_CELL) * WIDTH + half * LANES,
                          load_words(words_at(w, output, octet)), scales_at(w, output, octet / 4));
}

// sums [rows, WIDTH] += x [count, ROWS] times panel [count, WIDTH], of cells. `rows` is a constant where it is inlined.
static inline __attribute__((always_inline)) void multiply_rows(const cell *x, const cell *panel, int64_t count,
                                                                int rows, float *sums) {
    floats s[ROWS][2];
#pragma GCC unroll 12  // else gcc stores the sums in every turn on Arm
    for (int r = 0; r < rows; r++)
        for (int h = 0; h < 2; h++) s[r][h] = load(sums + r * WIDTH + h * LANES);
    for (int64_t p = 0; p < count; p++, x += ROWS, panel += WIDTH) {
        cells left = load_cells(panel), right = load_cells(panel + LANES);
        for (int r = 0; r < rows; r++) {
            cells one = broadcast_cell(x[r]);
            s[r][0] = add_product(s[r][0], one, left);
            s[r][1] = add_product(s[r][1], one, right);
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++)
        for (int h = 0; h < 2; h++) store(sums + r * WIDTH + h * LANES, s[r][h]);
}

// Of the last rows, which may be fewer than ROWS, half a tile where that is enough.
static void multiply(const cell *x, const cell *panel, int64_t count, int64_t rows, float *sums) {
    if (rows > ROWS / 2)
        multiply_rows(x, panel, count, ROWS, sums);
    else
        multiply_rows(x, panel, count, ROWS / 2, sums);
}

// The calling thread's share of y = x W.T.
static void many_rows(const Product *c) {
    cell *packed = c->work;
    const int64_t k = c->weight.k, n = c->weight.n, count = k / PER_CELL, groups = (c->rows + ROWS - 1) / ROWS;
    const int64_t parts = (groups * ROWS + TALL - 1) / TALL, tall = (groups + parts - 1) / parts;  // in groups
    int64_t from, to;
    my_share(groups, 1, &from, &to);
    for (int64_t g = from; g < to; g++)
        for (int64_t p = 0; p < count; p++)
            for (int64_t r = 0; r < ROWS; r++)
                packed[(g * count + p) * ROWS + r] =
                    g * ROWS + r < c->rows ? cell_of(c->x + (g * ROWS + r) * k + p * PER_CELL) : 0;
    GOMP_barrier();

    cell panel[PANEL / PER_CELL * WIDTH] __attribute__((aligned(64)));
    float sums[SIDE][TALL * WIDTH] __attribute__((aligned(64)));
    const int64_t columns = n / WIDTH;
    my_share(columns * parts, 1, &from, &to);
    for (int64_t unit = from, wide; unit < to; unit += wide) {
        const int64_t column = unit % columns, first = unit / columns * tall;
        const int64_t last = least(first + tall, groups);
        wide = least(SIDE, least(columns - column, to - unit));
        for (int64_t side = 0; side < wide; side++)
            __builtin_memset(sums[side], 0, (last - first) * ROWS * WIDTH * sizeof(float));
        for (int64_t k0 = 0; k0 < k; k0 += PANEL) {
            int64_t some = least(k - k0, PANEL) / PER_CELL;
            for (int64_t side = 0; side < wide; side++) {
                fill_panel(&c->weight, (column + side) * WIDTH, k0, some * PER_CELL, panel);
                for (int64_t g = first; g < last; g++)
                    multiply(packed + (g * count + k0 / PER_CELL) * ROWS, panel, some, c->rows - g * ROWS,
                             sums[side] + (g - first) * ROWS * WIDTH);
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
