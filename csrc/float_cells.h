// Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
//
// Many rows: a cell, which is what a lane multiplies at once, is a float.

enum { PER_CELL = 1 };
typedef float cell;
typedef floats cells;

static inline cell cell_of(const bf16 *x) { return float_of(*x); }
static inline cells broadcast_cell(cell x) { return broadcast(x); }
static inline cells load_cells(const cell *p) { return load(p); }
static inline cells cells_of(const bf16 *p) { return load_bf16(p); }
static inline floats add_product(floats sum, cells x, cells y) { return fmadd(x, y, sum); }

static inline void store_weights(cell *panel, ints word, floats scale) {
    for (int i = 0; i < 8; i++) store(panel + i * WIDTH, codes_of(word, i) * scale);
}

// WIDTH columns of PER_CELL rows.
static inline void store_cells_of_rows(cell *panel, const bf16 *row, const bf16 *next) {
    (void)next;
    store(panel, load_bf16(row));
    store(panel + LANES, load_bf16(row + LANES));
}
