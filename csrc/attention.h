// Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
//
// What a pass through a decoder layer keeps in memory, and the attention in it.

// Between these all threads wait for each other; each computes a share of every one.
typedef struct {
    Step step;
    bf16 *q, *k, *v;  // [rows, heads or kv_heads, head_dim]
    float *scores;    // [rows, heads, padded]
    int64_t padded;   // step.length, rounded up to 16
    float *mixed;     // [threads, rows, heads, head_dim], sums of values
    int64_t threads;
    bf16 *attended;                       // [rows, heads, head_dim]
    bf16 *attention_update, *mlp_update;  // [rows, width], what attention and MLP add
    bf16 *gate, *up;                      // [rows, intermediate]; gelu(gate) * up is written over `gate`
    bf16 *x, *residual;                   // [rows, width], what a product takes, what its result is added to
    void *prepared;                       // x as few_rows wants it, or room for what many_rows makes of it
} Pass;

// Places what all threads share; returns its size in bytes. With memory NULL only the size has a meaning.
static size_t place_shared(Pass *p, void *memory) {
    uintptr_t at = (uintptr_t)memory;
    const Layer *l = p->step.layer;
    const int64_t rows = p->step.rows, number = rows * sizeof(bf16);
    p->scores = take(&at, rows * l->heads * p->padded * sizeof(float));
    p->mixed = take(&at, p->threads * rows * l->q.n * sizeof(float));
    p->q = take(&at, number * l->q.n);
    p->k = take(&at, number * l->k.n);
    p->v = take(&at, number * l->v.n);
    p->attended = take(&at, number * l->q.n);
    p->attention_update = take(&at, number * l->o.n);
    p->mlp_update = take(&at, number * l->down.n);
    p->gate = take(&at, number * l->gate.n);
    p->up = take(&at, number * l->up.n);
    return at - (uintptr_t)memory;
}

// Likewise what all threads share of several rows, and each has of its own of a single one.
static size_t place_rows(Pass *p, void *memory) {
    uintptr_t at = (uintptr_t)memory;
    const Layer *l = p->step.layer;
    const int64_t rows = p->step.rows, prepared = rows <= p->step.few ? rows : rows + ROWS;
    p->x = take(&at, rows * l->q.k * sizeof(bf16));
    p->residual = take(&at, rows * l->q.k * sizeof(bf16));
    // nine bytes for two inputs are enough for fixed point, and what `int4_product` asks for
    p->prepared = take(&at, prepared * most(most(l->q.k, l->o.k), l->down.k) / 2 * 9);
    return at - (uintptr_t)memory;
}

// Partial sums of a score, so that one need not wait for another; NEON and AVX2 sum up alike.
enum { CHAINS = LANES == 16 ? 2 : 16 / LANES };

// scores = scaling * q . keys, positions from .. to, -1e30 where masked, for heads of one group, from `first` on;
// `heads` is a constant wherever this is inlined. A key is read, and made to cells, once for all of them.
static inline __attribute__((always_inline)) void score(const Pass *p, int64_t first, int heads, int64_t from,
                                                        int64_t to) {
    enum { STEP = LANES * PER_CELL };
    const Step *s = &p->step;
    const Layer *l = s->layer;
    const int64_t n = l->head_dim, count = n / PER_CELL;
    const bf16 *keys = s->keys + first / (l->heads / l->kv_heads) * s->head_stride;
    const uint8_t *mask = s->mask ? s->mask + first / l->heads * s->mask_stride : NULL;
    cell query[heads * count];
    for (int64_t i = 0; i < heads * count; i++) query[i] = cell_of(p->q + first * n + i * PER_CELL);
    for (int64_t at = from; at < to; at++) {
        float *scores = p->scores + first * p->padded + at;
        if (at >= s->length || (mask && !mask[at])) {
            for (int h = 0; h < heads; h++) scores[h * p->padded] = -1e30f;
            continue;
        }
        floats sum[4][CHAINS];
        for (int h = 0; h < heads; h++)
            for (int c = 0; c < CHAINS; c++) sum[h][c] = broadcast(0);
        int64_t i = 0;
        for (; i + CHAINS * STEP <= n; i += CHAINS * STEP)
            for (int c = 0; c < CHAINS; c++) {
                cells key = cells_of(keys + at * n + i + c * STEP);
                for (int h = 0; h < heads; h++)
                    sum[h][c] = add_product(sum[h][c], load_cells(query + h * count + i / PER_CELL + c * LANES), key);
            }
        for (; i < n; i += STEP)
            for (int h = 0; h < heads; h++)
                sum[h][0] =
                    add_product(sum[h][0], load_cells(query + h * count + i / PER_CELL), cells_of(keys + at * n + i));
        for (int h = 0; h < heads; h++) {
            for (int c = CHAINS / 2; c; c /= 2)
                for (int j = 0; j < c; j++) sum[h][j] = sum[h][j] + sum[h][j + c];
            scores[h * p->padded] = sum_of(sum[h][0]) * l->scaling;
        }
    }
}

// The calling thread's share of the scores, by positions.
static void my_scores(const Pass *p) {
    const Layer *l = p->step.layer;
    const int64_t group = l->heads / l->kv_heads;
    int64_t from, to;
    my_share(p->padded, 16, &from, &to);
    for (int64_t head = 0; head < p->step.rows * l->heads;) {
        const int64_t end = head + group;
        for (; head + 4 <= end; head += 4) score(p, head, 4, from, to);
        for (; head + 2 <= end; head += 2) score(p, head, 2, from, to);
        if (head < end) score(p, head++, 1, from, to);
    }
}

static void my_softmax(const Pass *p) {
    int64_t from, to;
    my_share(p->step.rows * p->step.layer->heads, 1, &from, &to);
    for (int64_t h = from; h < to; h++) softmax(p->scores + h * p->padded, p->padded);
}

// From LONG positions on values are mixed by positions and not by columns: PART at a time, which stay in the second
// cache until all their columns are mixed.
enum { LONG = 2048, PART = 128 };

// WIDTH columns of scores . values, positions from .. to, added to sums [rows, heads, head_dim], for so many heads of
// one group; `heads` is a constant wherever this is inlined.
static inline __attribute__((always_inline)) void mix(const Pass *p, int64_t first, int64_t column, int heads,
                                                      int64_t from, int64_t to, float *sums) {
    const Step *s = &p->step;
    const int64_t n = s->layer->head_dim, group = s->layer->heads / s->layer->kv_heads;
    const bf16 *value = s->values + first / group * s->head_stride + from * n + column;
    floats sum[4][2];
    sums += first * n + column;
    for (int h = 0; h < heads; h++)
        for (int half = 0; half < 2; half++) sum[h][half] = load(sums + h * n + half * LANES);
    for (int64_t at = from; at < to; at++, value += n) {
        floats low = load_bf16(value), high = load_bf16(value + LANES);
        __builtin_prefetch(value + 16 * n, 0, 3);  // a stride that no hardware prefetcher follows
        for (int h = 0; h < heads; h++) {
            floats weight = broadcast(p->scores[(first + h) * p->padded + at]);
            sum[h][0] = fmadd(weight, low, sum[h][0]);
            sum[h][1] = fmadd(weight, high, sum[h][1]);
        }
    }
    for (int h = 0; h < heads; h++)
        for (int half = 0; half < 2; half++) store(sums + h * n + half * LANES, sum[h][half]);
}

// Likewise, for all heads of a group.
static void mix_group(const Pass *p, int64_t head, int64_t column, int64_t from, int64_t to, float *sums) {
    const int64_t end = head + p->step.layer->heads / p->step.layer->kv_heads;
    for (; head + 4 <= end; head += 4) mix(p, head, column, 4, from, to, sums);
    for (; head + 2 <= end; head += 2) mix(p, head, column, 2, from, to, sums);
    if (head < end) mix(p, head, column, 1, from, to, sums);
}

// The calling thread's share of the attended values of a long cache: some positions, then some heads of all threads'
// sums.
static void my_long_mixture(const Pass *p) {
    const Layer *l = p->step.layer;
    const int64_t n = l->head_dim, group = l->heads / l->kv_heads, heads = p->step.rows * l->heads;
    float *own = p->mixed + omp_get_thread_num() * heads * n;
    int64_t from, to;
    __builtin_memset(own, 0, heads * n * sizeof(float));
    my_share(p->step.length, 1, &from, &to);
    for (int64_t at = from; at < to; at += PART)
        for (int64_t head = 0; head < heads; head += group)
            for (int64_t column = 0; column < n; column += WIDTH)
                mix_group(p, head, column, at, at + PART < to ? at + PART : to, own);
    GOMP_barrier();
    my_share(heads, 1, &from, &to);
    for (int64_t i = from * n; i < to * n; i += LANES) {
        floats sum = load(p->mixed + i);
        for (int64_t t = 1; t < omp_get_num_threads(); t++) sum = sum + load(p->mixed + t * heads * n + i);
        store_bf16(p->attended + i, sum);
    }
}

// The calling thread's share of the attended values, by columns of WIDTH.
static void my_mixture(const Pass *p) {
    const Layer *l = p->step.layer;
    const int64_t n = l->head_dim, columns = n / WIDTH, group = l->heads / l->kv_heads;
    if (p->step.length >= LONG) {
        my_long_mixture(p);
        return;
    }
    int64_t from, to;
    my_share(p->step.rows * l->kv_heads * columns, 1, &from, &to);
    for (int64_t unit = from; unit < to; unit++) {
        const int64_t first = unit / columns * group, column = unit % columns * WIDTH;
        for (int64_t h = first; h < first + group; h++)
            for (int64_t i = 0; i < WIDTH; i += LANES) store(p->mixed + h * n + column + i, broadcast(0));
        mix_group(p, first, column, 0, p->step.length, p->mixed);
        for (int64_t h = first; h < first + group; h++)
            for (int64_t i = column; i < column + WIDTH; i += LANES)
                store_bf16(p->attended + h * n + i, load(p->mixed + h * n + i));
    }
}
