// Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
//
// Operations on each number or row, which take most of a layer's steps and little of its time.

static const float LOG2_E = 1.44269504f;

// 2^(power + part), the latter by its Taylor series: good to 2e-7. x is -126 to 127.
static inline floats exp2_ps(floats x) {
    static const float c[7] =
        {1, 0.693147181f, 0.240226507f, 0.0555041087f, 0.00961812911f, 0.00133335581f, 0.000154035304f};
    floats power = round_to_whole(x), part = x - power, y = broadcast(c[6]);
    for (int i = 5; i >= 0; i--) y = fmadd(y, part, broadcast(c[i]));
    return times_power_of_2(y, power);
}

// Below e^-87 it is 0, and so are the weights of what is not seen: as the least of numbers they would make sums
// denormal, which takes some CPUs a hundred times as long. NaN stays NaN: of two numbers of which one is NaN, x86 takes
// the second one.
static inline floats exp_ps(floats x) {
    const ints is_none = x <= broadcast(-87);
    x = minimum(broadcast(88), maximum(broadcast(-87), x));
    return (floats)((ints)exp2_ps(x * broadcast(LOG2_E)) & ~is_none);
}

static inline floats gelu_tanh(floats x) {  // x / (1 + exp(-2 z)), z = sqrt(2 / pi) * (x + 0.044715 x^3)
    floats cubic = fmadd(x * x, broadcast(0.044715f), broadcast(1));
    return x / (exp_ps(x * cubic * broadcast(-1.59576912f)) + broadcast(1));
}

// As Gemma3RMSNorm: in float32, times 1 + weight, rounded once.
static void rms_norm(const bf16 *x, const bf16 *weight, int64_t n, float eps, bf16 *y) {
    floats sum = broadcast(0);
    for (int64_t i = 0; i < n; i += LANES) sum = fmadd(load_bf16(x + i), load_bf16(x + i), sum);
    floats scale = broadcast(1 / sqrtf(sum_of(sum) / n + eps));
    for (int64_t i = 0; i < n; i += LANES)
        store_bf16(y + i, load_bf16(x + i) * scale * (load_bf16(weight + i) + broadcast(1)));
}

static void add(const bf16 *x, const bf16 *y, int64_t n, bf16 *sum) {
    for (int64_t i = 0; i < n; i += LANES) store_bf16(sum + i, load_bf16(x + i) + load_bf16(y + i));
}

// y = gelu(gate) * up, or without up, gelu(gate)
static void gated(const bf16 *gate, const bf16 *up, int64_t from, int64_t to, bf16 *y) {
    for (int64_t i = from; i < to; i += LANES) {
        const floats gelu = gelu_tanh(load_bf16(gate + i));
        if (up)
            store_bf16(y + i, round_bf16(gelu) * load_bf16(up + i));
        else
            store_bf16(y + i, gelu);
    }
}

// The rotary embedding: x * cos + rotate_half(x) * sin.
static void rotate(const bf16 *x, const bf16 *cos, const bf16 *sin, int64_t n, bf16 *y) {
    for (int64_t i = 0; i < n / 2; i += LANES) {
        floats a = load_bf16(x + i), b = load_bf16(x + n / 2 + i);
        store_bf16(y + i, fmadd(a, load_bf16(cos + i), -(b * load_bf16(sin + i))));
        store_bf16(y + n / 2 + i, fmadd(b, load_bf16(cos + n / 2 + i), a * load_bf16(sin + n / 2 + i)));
    }
}

static void softmax(float *x, int64_t n) {
    floats most = load(x), sum = broadcast(0);
    for (int64_t i = LANES; i < n; i += LANES) most = maximum(most, load(x + i));
    most = broadcast(maximum_of(most));
    for (int64_t i = 0; i < n; i += LANES) {
        floats e = exp_ps(load(x + i) - most);
        sum = sum + e;
        store(x + i, e);
    }
    floats inverse = broadcast(1 / sum_of(sum));
    for (int64_t i = 0; i < n; i += LANES) store(x + i, load(x + i) * inverse);
}

static void rms_norm_body(void *call) {
    const Norm *c = call;
    int64_t from, to;
    my_share(c->rows, 1, &from, &to);
    for (int64_t row = from; row < to; row++) rms_norm(c->x + row * c->n, c->weight, c->n, c->eps, c->y + row * c->n);
}

void int4_rms_norm(const Norm *call, int threads) { run(rms_norm_body, call, threads); }

static void gated_body(void *call) {
    const Gated *c = call;
    int64_t from, to;
    my_share(c->n, 16, &from, &to);
    gated(c->gate, c->up, from, to, c->y);
}

void int4_gated(const Gated *call, int threads) { run(gated_body, call, threads); }
