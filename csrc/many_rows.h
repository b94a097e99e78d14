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
