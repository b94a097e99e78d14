// Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
//
// Attention of many queries, block of keys by block, in the first two caches; both products are `multiply`'s.
//
// A unit of work is some positions of one sequence and all heads that share their keys: TALL_ROWS rows about, which
// pass over the blocks of keys that one of them sees. Scores, sums and the softmax are float32; with BF16
// what is multiplied is bfloat16, the softmax's numerators as well.

enum { BLOCK = 64, TALL_ROWS = 128 };  // keys to a block; rows to a unit

// What a thread has of its own, for `groups` times ROWS rows.
typedef struct {
    int64_t rows, groups, width;  // rows in use; ROWS of them to a group; numbers to a head, rounded up to WIDTH
    cell *query;                  // [groups, dim / PER_CELL, ROWS]
    cell *panel;                  // [dim / PER_CELL, WIDTH] of keys, or [BLOCK / PER_CELL, WIDTH] of values
    float *scores;                // [groups, BLOCK / WIDTH, ROWS, WIDTH]
    cell *weights;                // [groups, ROWS, BLOCK / PER_CELL]
    float *sums;                  // [groups, width / WIDTH, ROWS, WIDTH], of weighted values
    float *most;                  // [groups * ROWS], the highest score so far
    float *total;                 // [groups * ROWS, LANES], sums of weights
    int64_t *first, *end;         // [positions], the keys that each sees
} Unit;

// Where the queries of a unit lie, and their keys.
typedef struct {
    const Attention *call;
    int64_t sequence, kv_head, position, positions, group;
} Place;

static int64_t unit_positions(const Attention *c) {
    const int64_t group = c->heads / c->kv_heads, positions = TALL_ROWS / group;
    return positions ? positions : 1;
}

static size_t place_unit(const Attention *c, Unit *u, void *memory) {
    uintptr_t at = (uintptr_t)memory;
    const int64_t group = c->heads / c->kv_heads, positions = unit_positions(c);
    const int64_t groups = (positions * group + ROWS - 1) / ROWS, rows = groups * ROWS;
    const int64_t cells = most(c->dim, BLOCK) / PER_CELL;
    u->width = (c->dim + WIDTH - 1) / WIDTH * WIDTH;
    u->query = take(&at, rows * (c->dim / PER_CELL) * sizeof(cell));
    u->panel = take(&at, cells * WIDTH * sizeof(cell));
    u->scores = take(&at, rows * BLOCK * sizeof(float));
    u->weights = take(&at, rows * (BLOCK / PER_CELL) * sizeof(cell));
    u->sums = take(&at, rows * u->width * sizeof(float));
    u->most = take(&at, rows * sizeof(float));
    u->total = take(&at, rows * LANES * sizeof(float));
    u->first = take(&at, positions * sizeof(int64_t));
    u->end = take(&at, positions * sizeof(int64_t));
    return at - (uintptr_t)memory;
}

// Row r of a unit is head r / positions of its group, at position r % positions.
static const bf16 *query_at(const Place *p, int64_t row) {
    const Attention *c = p->call;
    const int64_t head = p->kv_head * p->group + row / p->positions, position = p->position + row % p->positions;
    return c->query + p->sequence * c->query_strides[0] + head * c->query_strides[1] + position * c->query_strides[2];
}

static void begin_unit(const Place *p, Unit *u) {
    const Attention *c = p->call;
    const int64_t count = c->dim / PER_CELL;
    u->rows = p->positions * p->group;
    u->groups = (u->rows + ROWS - 1) / ROWS;
    for (int64_t row = 0; row < u->groups * ROWS; row++) {
        cell *to = u->query + row / ROWS * count * ROWS + row % ROWS;
        const bf16 *from = row < u->rows ? query_at(p, row) : NULL;
        for (int64_t i = 0; i < count; i++) to[i * ROWS] = from ? cell_of(from + i * PER_CELL) : 0;
        u->most[row] = NOTHING;
        store(u->total + row * LANES, broadcast(0));
    }
    __builtin_memset(u->weights, 0, u->groups * ROWS * (BLOCK / PER_CELL) * sizeof(cell));
    __builtin_memset(u->sums, 0, u->groups * ROWS * u->width * sizeof(float));
    for (int64_t t = 0; t < p->positions; t++) {
        const int64_t at = p->sequence * c->rule_stride + p->position + t;
        u->first[t] = c->first ? c->first[at] : 0;
        u->end[t] = c->first ? c->end[at] : c->keys;
    }
}

// scores = scaling * q . k of a block of keys, `count` of them.
static void block_scores(const Place *p, Unit *u, int64_t block, int64_t count) {
    const Attention *c = p->call;
    const bf16 *keys = c->key + p->sequence * c->key_strides[0] + p->kv_head * c->key_strides[1];
    const int64_t cells = c->dim / PER_CELL, stride = c->key_strides[2];
    for (int64_t j = 0; j < count; j += WIDTH) {
        for (int64_t k = 0; k < WIDTH; k += 8)
            fill_columns(keys + (block + j + k) * stride, stride, count - j - k, c->dim, PER_CELL,
                         (uint32_t *)u->panel + k);
        for (int64_t g = 0; g < u->groups; g++) {
            float *scores = u->scores + (g * (BLOCK / WIDTH) + j / WIDTH) * ROWS * WIDTH;
            __builtin_memset(scores, 0, ROWS * WIDTH * sizeof(float));
            multiply(u->query + g * cells * ROWS, u->panel, cells, u->rows - g * ROWS, scores);
        }
    }
}

static inline float *score_at(const Unit *u, int64_t row, int64_t j) {
    return u->scores + ((row / ROWS * (BLOCK / WIDTH) + j / WIDTH) * ROWS + row % ROWS) * WIDTH + j % WIDTH;
}

static inline float *sum_at(const Unit *u, int64_t row, int64_t i) {
    return u->sums + (row / ROWS * u->width + i / WIDTH * WIDTH) * ROWS + row % ROWS * WIDTH + i % WIDTH;
}

// Scores of a row -> weights, against the highest score so far; what was summed up before is brought to that too.
static void weigh_row(const Place *p, Unit *u, int64_t row, int64_t block, int64_t count) {
    const Attention *c = p->call;
    const int64_t first = u->first[row % p->positions], end = u->end[row % p->positions];
    const uint8_t *seen = c->seen ? c->seen + p->sequence * c->seen_stride + block : NULL;
    float weights[BLOCK] __attribute__((aligned(64)));
    floats highest = broadcast(NOTHING), scaling = broadcast(c->scaling);
    for (int64_t j = 0; j < BLOCK; j += LANES) store(weights + j, load(score_at(u, row, j)) * scaling);
    if (block < first || block + BLOCK > end || seen)
        for (int64_t j = 0; j < BLOCK; j++)
            if (block + j < first || block + j >= end || j >= count || (seen && !seen[j])) weights[j] = NOTHING;
    for (int64_t j = 0; j < BLOCK; j += LANES) highest = maximum(highest, load(weights + j));
    const float before = u->most[row], now = maximum_of(highest) <= before ? before : maximum_of(highest);
    cell *to = u->weights + row * (BLOCK / PER_CELL);
    if (now == NOTHING) {
        __builtin_memset(to, 0, BLOCK / PER_CELL * sizeof(cell));
        return;
    }
    floats total = load(u->total + row * LANES), shift = broadcast(now);
    if (now > before) {
        float down[LANES];
        store(down, exp_ps(broadcast(before - now)));
        floats factor = broadcast(down[0]);
        total = total * factor;
        u->most[row] = now;
        for (int64_t i = 0; i < c->dim; i += LANES) {
            float *sum = sum_at(u, row, i);
            store(sum, load(sum) * factor);
        }
    }
    for (int64_t j = 0; j < BLOCK; j += LANES) {
        floats weight = exp_ps(load(weights + j) - shift);
        total = total + weight;
        if (PER_CELL == 2)
            store_bf16((bf16 *)to + j, weight);
        else
            store((float *)to + j, weight);
    }
    store(u->total + row * LANES, total);
}

// `columns` of the values of a block, all others 0: panel [BLOCK / PER_CELL, WIDTH]
static void fill_value_panel(const bf16 *values, int64_t stride, int64_t count, int64_t columns, cell *panel) {
    bf16 rows[2][WIDTH] = {{0}};
    for (int64_t j = 0; j < BLOCK; j += PER_CELL, panel += WIDTH) {
        const bf16 *row[2];
        for (int half = 0; half < 2; half++) {
            row[half] = values + (j + half) * stride;
            if (j + half < count && columns == WIDTH) continue;
            __builtin_memset(rows[half], 0, sizeof rows[half]);
            if (j + half < count) __builtin_memcpy(rows[half], row[half], columns * sizeof(bf16));
            row[half] = rows[half];
        }
        store_cells_of_rows(panel, row[0], row[1]);
    }
}

// sums [rows, WIDTH] += weights [rows, BLOCK / PER_CELL] times a panel, the left half of it where no more is in use.
static void add_values(const cell *weights, const cell *panel, int64_t rows, int64_t columns, float *sums) {
    enum { CELLS = BLOCK / PER_CELL };
    if (rows > ROWS / 2 && columns > LANES)
        multiply_rows(weights, CELLS, 1, panel, CELLS, ROWS, 2, sums);
    else if (rows > ROWS / 2)
        multiply_rows(weights, CELLS, 1, panel, CELLS, ROWS, 1, sums);
    else
        multiply_rows(weights, CELLS, 1, panel, CELLS, ROWS / 2, 2, sums);
}

// sums += weights . values of a block of keys.
static void block_values(const Place *p, Unit *u, int64_t block, int64_t count) {
    const Attention *c = p->call;
    const bf16 *values = c->value + p->sequence * c->value_strides[0] + p->kv_head * c->value_strides[1];
    const int64_t stride = c->value_strides[2];
    for (int64_t column = 0; column < u->width; column += WIDTH) {
        const int64_t columns = c->dim - column < WIDTH ? c->dim - column : WIDTH;
        fill_value_panel(values + block * stride + column, stride, count, columns, u->panel);
        for (int64_t g = 0; g < u->groups; g++)
            add_values(u->weights + g * ROWS * (BLOCK / PER_CELL), u->panel, u->rows - g * ROWS, columns,
                       u->sums + (g * u->width + column) * ROWS);
    }
}

static void end_unit(const Place *p, const Unit *u) {
    const Attention *c = p->call;
    for (int64_t row = 0; row < u->rows; row++) {
        const int64_t head = p->kv_head * p->group + row / p->positions;
        const int64_t position = p->position + row % p->positions;
        bf16 *out = c->out + ((p->sequence * c->queries + position) * c->heads + head) * c->dim;
        const float total = sum_of(load(u->total + row * LANES));
        floats factor = broadcast(total == 0 ? 0 : 1 / total);
        for (int64_t i = 0; i < c->dim; i += LANES) {
            bf16 rounded[LANES];
            store_bf16(rounded, load(sum_at(u, row, i)) * factor);
            __builtin_memcpy(out + i, rounded, (c->dim - i < LANES ? c->dim - i : LANES) * sizeof(bf16));
        }
    }
}

static void flash_body(void *units) {
    Units *s = units;
    const Attention *c = s->call;
    Unit u;
    place_unit(c, &u, my_memory(s));
    const int64_t positions = unit_positions(c), parts = (c->queries + positions - 1) / positions;
    const int64_t all = c->batch * c->kv_heads * parts;
    for (int64_t unit; (unit = next_unit(s)) < all;) {
        // the last queries first, as they see most
        const int64_t part = parts - 1 - unit / (c->batch * c->kv_heads), which = unit % (c->batch * c->kv_heads);
        Place p = {.call = c, .sequence = which / c->kv_heads, .kv_head = which % c->kv_heads};
        p.position = part * positions;
        p.positions = c->queries - p.position < positions ? c->queries - p.position : positions;
        p.group = c->heads / c->kv_heads;
        begin_unit(&p, &u);
        int64_t from = c->keys, to = 0;
        for (int64_t t = 0; t < p.positions; t++) {
            if (u.first[t] >= u.end[t]) continue;
            from = u.first[t] < from ? u.first[t] : from;
            to = most(to, u.end[t]);
        }
        for (int64_t block = from; block < to; block += BLOCK) {
            const int64_t count = to - block < BLOCK ? to - block : BLOCK;
            block_scores(&p, &u, block, count);
            for (int64_t row = 0; row < u.rows; row++) weigh_row(&p, &u, row, block, count);
            block_values(&p, &u, block, count);
        }
        end_unit(&p, &u);
    }
}

int int4_attention(const Attention *call, int threads) {
#ifdef HAS_PAIRS
    Head head;
    if (!call->first && !call->seen && call->dim <= RUN)
        return run_units(square_body, call, place_head(call, &head, NULL), threads);
#endif
    Unit unit;
    return run_units(flash_body, call, place_unit(call, &unit, NULL), threads);
}
