// Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
//
// Decoder layers, one after the other, for one token of each sequence.

// The rows that the calling thread prepares for a product, or completes after it: its share of several, which it then
// has to show to the others. A single row each thread prepares for itself, which is quicker than waiting for another.
static void my_rows(const Pass *p, int64_t *from, int64_t *to) {
    *from = 0;
    *to = 1;
    if (p->step.rows > 1) my_share(p->step.rows, 1, from, to);
}

// To be called with x [k] for each of `my_rows`, then, by all threads, `show`, then `my_product`.
static void prepare(const Pass *p, const bf16 *x, int64_t k, int64_t row) {
    if (p->step.rows <= p->step.few) to_fixed(x, k, fixed_at(p->prepared, k, row));
}

static void show(const Pass *p) {
    if (p->step.rows > 1) GOMP_barrier();
}

// The calling thread's share of y [rows, n] = x W.T, x [rows, k].
static void my_product(const Pass *p, const Matrix *w, const bf16 *x, bf16 *y) {
    if (p->step.rows <= p->step.few) {
        few_rows(w, p->prepared, p->step.rows, y);
    } else {
        Product call = {.weight = *w, .x = x, .rows = p->step.rows, .work = p->prepared, .y = y};
        many_rows(&call);
        GOMP_barrier();  // before the next product packs
    }
}

static void my_projections(const Pass *p, int64_t first, int64_t last) {
    const Layer *l = p->step.layer;
    const int64_t width = l->q.k;
    for (int64_t r = first; r < last; r++) {
        rms_norm(p->step.hidden + r * width, l->norms[0], width, l->eps, p->x + r * width);
        prepare(p, p->x + r * width, width, r);
    }
    show(p);
    my_product(p, &l->q, p->x, p->q);
    my_product(p, &l->k, p->x, p->k);
    my_product(p, &l->v, p->x, p->v);
}

// Norm and rotary embedding: queries in their place, keys and values to where they are kept.
static void my_heads(const Pass *p) {
    const Step *s = &p->step;
    const Layer *l = s->layer;
    const int64_t n = l->head_dim, all_heads = l->heads + l->kv_heads;
    int64_t from, to;
    my_share(s->rows * all_heads, 1, &from, &to);
    for (int64_t i = from; i < to; i++) {
        const int64_t r = i / all_heads, h = i % all_heads;
        const bf16 *cos = s->cos + r * s->table_stride, *sin = s->sin + r * s->table_stride;
        bf16 normed[n];
        if (h < l->heads) {
            bf16 *q = p->q + (r * l->heads + h) * n;
            rms_norm(q, l->norms[1], n, l->eps, normed);
            rotate(normed, cos, sin, n, q);
        } else {
            int64_t kv = r * l->kv_heads + h - l->heads, at = kv * s->head_stride + (s->length - 1) * n;
            rms_norm(p->k + kv * n, l->norms[2], n, l->eps, normed);
            rotate(normed, cos, sin, n, s->keys + at);
            __builtin_memcpy(s->values + at, p->v + kv * n, n * sizeof(bf16));
        }
    }
}

static void my_output_projection(const Pass *p, int64_t first, int64_t last) {
    const Matrix *o = &p->step.layer->o;
    for (int64_t r = first; r < last; r++) prepare(p, p->attended + r * o->k, o->k, r);
    show(p);
    my_product(p, o, p->attended, p->attention_update);
}

static void my_gate_and_up(const Pass *p, int64_t first, int64_t last) {
    const Layer *l = p->step.layer;
    const int64_t width = l->q.k;
    for (int64_t r = first; r < last; r++) {
        bf16 *x = p->x + r * width, *residual = p->residual + r * width;
        rms_norm(p->attention_update + r * width, l->norms[3], width, l->eps, x);
        add(x, p->step.hidden + r * width, width, residual);
        rms_norm(residual, l->norms[4], width, l->eps, x);
        prepare(p, x, width, r);
    }
    show(p);
    my_product(p, &l->gate, p->x, p->gate);
    my_product(p, &l->up, p->x, p->up);
    int64_t from, to;
    my_share(l->gate.n / 16, 1, &from, &to);  // what this thread has just written, or, with `many_rows`, all have
    for (int64_t at = 0; at < p->step.rows * l->gate.n; at += l->gate.n)
        gated(p->gate, p->up, at + from * 16, at + to * 16, p->gate);
}

static void my_down(const Pass *p, int64_t first, int64_t last) {
    const Matrix *down = &p->step.layer->down;
    for (int64_t r = first; r < last; r++) prepare(p, p->gate + r * down->k, down->k, r);
    show(p);
    my_product(p, down, p->gate, p->mlp_update);
}

static void my_out(const Pass *p, int64_t first, int64_t last) {
    const Layer *l = p->step.layer;
    const int64_t width = l->q.k;
    if (p->step.rows == 1 && omp_get_thread_num()) return;
    for (int64_t r = first; r < last; r++) {
        rms_norm(p->mlp_update + r * width, l->norms[5], width, l->eps, p->x + r * width);
        add(p->x + r * width, p->residual + r * width, width, p->step.out + r * width);
    }
}

static void decoder_layer(const Pass *pass) {
    Pass own = *pass;
    const Pass *p = &own;
    char memory[own.step.rows == 1 ? place_rows(&own, NULL) : 1] __attribute__((aligned(64)));
    if (own.step.rows == 1) place_rows(&own, memory);
    int64_t first, last;
    my_rows(p, &first, &last);

    my_projections(p, first, last);
    GOMP_barrier();
    my_heads(p);
    GOMP_barrier();
    my_scores(p);
    GOMP_barrier();
    my_softmax(p);
    GOMP_barrier();
    my_mixture(p);
    GOMP_barrier();
    my_output_projection(p, first, last);
    GOMP_barrier();
    my_gate_and_up(p, first, last);
    GOMP_barrier();
    my_down(p, first, last);
    GOMP_barrier();
    my_out(p, first, last);
}

// A step's pass, in some memory; returns how many bytes of it. With memory NULL only these have a meaning.
static size_t place_pass(const Step *step, int threads, char *memory, Pass *pass) {
    *pass = (Pass){.step = *step, .padded = (step->length + 15) / 16 * 16, .threads = threads};
    const size_t rows_bytes = step->rows > 1 ? place_rows(pass, memory) : 0;
    return rows_bytes + place_shared(pass, memory + rows_bytes);
}

typedef struct {
    Steps steps;
    int threads;
    char *memory;  // that of the step that wants most
} Passes;

static void decoder_layers_body(void *passes) {
    const Passes *s = passes;
    for (int64_t i = 0; i < s->steps.count; i++) {
        Pass pass;
        if (i) GOMP_barrier();
        place_pass(s->steps.first + i, s->threads, s->memory, &pass);
        decoder_layer(&pass);
    }
}

int int4_decoder_layers(const Steps *call, int threads) {
    Pass pass;
    int64_t bytes = 0;
    for (int64_t i = 0; i < call->count; i++) bytes = most(bytes, place_pass(call->first + i, threads, NULL, &pass));
    Passes passes = {.steps = *call, .threads = threads, .memory = aligned_alloc(64, bytes)};
    if (!passes.memory) return OUT_OF_MEMORY;
    run(decoder_layers_body, &passes, threads);
    free(passes.memory);
    return 0;
}
