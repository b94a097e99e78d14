// Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
//
// Tiles of cells: products of float32 or bfloat16 numbers, of many rows and of attention.

// sums [rows, WIDTH] += x times panel [count, WIDTH], of cells; cell p of row r is x[r * across + p * along]. Of WIDTH
// both halves, or the left one. `rows`, `halves` and where cells stand are constants where it is inlined.
static inline __attribute__((always_inline)) void multiply_rows(const cell *x, int64_t across, int64_t along,
                                                                const cell *panel, int64_t count, int rows, int halves,
                                                                float *sums) {
    floats s[ROWS][2];
#pragma GCC unroll 12  // else gcc stores the sums in every turn on Arm
    for (int r = 0; r < rows; r++)
        for (int h = 0; h < halves; h++) s[r][h] = load(sums + r * WIDTH + h * LANES);
    for (int64_t p = 0; p < count; p++, x += along, panel += WIDTH) {
        cells left = load_cells(panel), right = load_cells(panel + LANES);
        for (int r = 0; r < rows; r++) {
            cells one = broadcast_cell(x[r * across]);
            s[r][0] = add_product(s[r][0], one, left);
            if (halves == 2) s[r][1] = add_product(s[r][1], one, right);
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++)
        for (int h = 0; h < halves; h++) store(sums + r * WIDTH + h * LANES, s[r][h]);
}

// x [count, ROWS]. Of the last rows, which may be fewer than ROWS, half a tile where that is enough.
static void multiply(const cell *x, const cell *panel, int64_t count, int64_t rows, float *sums) {
    if (rows > ROWS / 2)
        multiply_rows(x, 1, ROWS, panel, count, ROWS, 2, sums);
    else
        multiply_rows(x, 1, ROWS, panel, count, ROWS / 2, 2, sums);
}

#ifndef FIXED_TILES

// Inputs to a panel: 16 KB at most.
enum { PANEL = 4096 / WIDTH * PER_CELL < 256 ? 4096 / WIDTH * PER_CELL : 256 };

// The weights of WIDTH outputs and some inputs.
typedef struct {
    cell weights[PANEL / PER_CELL * WIDTH];
} __attribute__((aligned(64))) Panel;

// Inputs k0 .. k0 + count.
static void fill_panel(const Matrix *w, int64_t output, int64_t k0, int64_t count, Panel *panel) {
    for (int half = 0; half < 2; half++, output += LANES)
        for (int64_t octet = k0 / 8; octet < (k0 + count) / 8; octet++)
            store_weights(panel->weights + (octet - k0 / 8) * (8 / PER_CELL) * WIDTH + half * LANES,
                          load_words(words_at(w, output, octet)), scales_at(w, output, octet / 4));
}

// A tile's cells of x: [k / PER_CELL, ROWS]
static inline cell *tile_at(const Product *c, int64_t tile) {
    return (cell *)c->work + tile * (c->weight.k / PER_CELL) * ROWS;
}

static void pack_tile(const Product *c, int64_t tile) {
    const int64_t k = c->weight.k;
    cell *packed = tile_at(c, tile);
    for (int64_t p = 0; p < k / PER_CELL; p++)
        for (int64_t r = 0; r < ROWS; r++) {
            const int64_t row = tile * ROWS + r;
            packed[p * ROWS + r] = row < c->rows ? cell_of(c->x + row * k + p * PER_CELL) : 0;
        }
}

// sums [ROWS, WIDTH] += a tile times a panel.
static void multiply_tile(const Product *c, int64_t tile, int64_t k0, int64_t count, const Panel *panel,
                          const uint32_t *ahead, float *sums) {
    (void)ahead;
    multiply(tile_at(c, tile) + k0 / PER_CELL * ROWS, panel->weights, count / PER_CELL, c->rows - tile * ROWS, sums);
}

#endif
