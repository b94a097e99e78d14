// Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
//
// Many rows of activations: weights made to cells in the first cache; or, for SOME, codes multiplied in their words.

enum { PANEL = 256, TALL = 43 * ROWS };  // inputs to a panel, rows to a unit of work at most

_Static_assert(ROWS <= 12 && SOME <= 12, "Product.work has room for 12 rows more");

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
#pragma GCC unroll 12  // else gcc stores the sums in every turn on Arm
    for (int r = 0; r < ROWS; r++)
        for (int h = 0; h < 2; h++) s[r][h] = load(sums + r * WIDTH + h * LANES);
    for (int64_t p = 0; p < count; p++, x += ROWS, panel += WIDTH) {
        cells left = load_cells(panel), right = load_cells(panel + LANES);
        for (int r = 0; r < ROWS; r++) {
            cells one = broadcast_cell(x[r]);
            s[r][0] = add_product(s[r][0], one, left);
            s[r][1] = add_product(s[r][1], one, right);
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; r++)
        for (int h = 0; h < 2; h++) store(sums + r * WIDTH + h * LANES, s[r][h]);
}

// For up to SOME rows filling panels takes longer than multiplying: here codes become floats, and are multiplied, where
// they lie in their words. So nibble i counts 16^i, which the activations are divided by (the last one, at the sign's
// place, is moved down); the 8 of the codes and the scales come in once for a group.

// The calling thread's share of x [rows, k] -> for each ROWS rows, those beyond the last 0: x / 16^i [k, ROWS], and
// -8 * the sums of its groups [k / 32, ROWS].
static void pack_some(const Product *c) {
    static const float divided[8] = {1, 0x1p-4f, 0x1p-8f, 0x1p-12f, 0x1p-16f, 0x1p-20f, 0x1p-24f, 1};
    const int64_t k = c->weight.k;
    int64_t from, to;
    my_share(k / 32, 1, &from, &to);
    for (int64_t row = 0; row < (c->rows + ROWS - 1) / ROWS * ROWS; row++) {
        float *x = (float *)c->work + row / ROWS * ROWS * (k + k / 32) + row % ROWS, *offset = x + ROWS * k;
        for (int64_t g = from; g < to; g++) {
            float sum = 0;
            for (int64_t i = g * 32; i < g * 32 + 32; i++) {
                const float value = row < c->rows ? float_of(c->x[row * k + i]) : 0;
                x[i * ROWS] = value * divided[i % 8];
                sum += value;
            }
            offset[g * ROWS] = -8 * sum;
        }
    }
}

// WIDTH outputs of `rows` rows, a constant where this is inlined: y [rows, n] = W times what `pack_some` makes.
static inline __attribute__((always_inline)) void multiply_some(const Matrix *w, int64_t output, const float *x,
                                                                int rows, bf16 *y) {
    const float *offset = x + ROWS * w->k;
    floats sums[ROWS][2];
    for (int r = 0; r < rows; r++) sums[r][0] = sums[r][1] = broadcast(0);
    for (int64_t g = 0; g < w->k / 32; g++, offset += ROWS) {
        const uint32_t *words = words_at(w, output, g * 4);
        floats s[ROWS][2];
        for (int r = 0; r < rows; r++) s[r][0] = s[r][1] = broadcast(offset[r]);
#pragma GCC unroll 1
        for (int o = 0; o < 4; o++, words += 16) {
            __builtin_prefetch((const char *)words + 4096, 0, 2);
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++, x += ROWS) {
                ints left = load_words(words), right = load_words(words + LANES);
                left = i < 7 ? left & 15 << 4 * i : left >> 28 & 15;
                right = i < 7 ? right & 15 << 4 * i : right >> 28 & 15;
                for (int r = 0; r < rows; r++) {
                    floats one = broadcast(x[r]);
                    s[r][0] = fmadd(one, to_floats(left), s[r][0]);
                    s[r][1] = fmadd(one, to_floats(right), s[r][1]);
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
    my_share(c->weight.n, WIDTH, &from, &to);
    for (int64_t output = from; output < to; output += WIDTH)
        for (int64_t row = 0; row < c->rows; row += ROWS) {
            const float *x = (float *)c->work + row * (c->weight.k + c->weight.k / 32);
            bf16 *y = c->y + row * c->weight.n;
            switch (c->rows - row) {
                case 1: multiply_some(&c->weight, output, x, 1, y); break;
                case 2: multiply_some(&c->weight, output, x, 2, y); break;
                case 3: multiply_some(&c->weight, output, x, 3, y); break;
                case 4: multiply_some(&c->weight, output, x, 4, y); break;
                case 5: multiply_some(&c->weight, output, x, 5, y); break;
                default: multiply_some(&c->weight, output, x, ROWS, y);
            }
        }
}

// The calling thread's share of y = x W.T.
static void many_rows(const Product *c) {
    if (SOME > 0 && c->rows <= SOME) {
        some_rows(c);
        return;
    }
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
    float sums[TALL * WIDTH] __attribute__((aligned(64)));
    my_share(n / WIDTH * parts, 1, &from, &to);
    for (int64_t unit = from; unit < to; unit++) {
        int64_t column = unit / parts * WIDTH, first = unit % parts * tall;
        int64_t last = first + tall < groups ? first + tall : groups;
        __builtin_memset(sums, 0, sizeof sums);
        for (int64_t k0 = 0; k0 < k; k0 += PANEL) {
            int64_t some = (k - k0 < PANEL ? k - k0 : PANEL) / PER_CELL;
            fill_panel(&c->weight, column, k0, some * PER_CELL, panel);
            for (int64_t g = first; g < last; g++)
                multiply(packed + (g * count + k0 / PER_CELL) * ROWS, panel, some, sums + (g - first) * ROWS * WIDTH);
        }
        for (int64_t row = first * ROWS; row < last * ROWS && row < c->rows; row++) {
            const float *sum = sums + (row - first * ROWS) * WIDTH;
            store_two_bf16(c->y + row * n + column, load(sum), load(sum + LANES));
        }
    }
}

static void product_body(void *call) { many_rows(call); }

void int4_product(const Product *call, int threads) { run(product_body, call, threads); }
