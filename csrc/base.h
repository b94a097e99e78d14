// Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
//
// What needs no vectors: threads, a matrix's words, fixed point.

// Threads are torch's own: these come from the OpenMP runtime that torch has loaded.
void GOMP_parallel(void (*body)(void *), void *call, unsigned threads, unsigned flags);
void GOMP_barrier(void);
int omp_get_thread_num(void);
int omp_get_num_threads(void);

// Has each of the threads call body(call).
static void run(void (*body)(void *), const void *call, int threads) { GOMP_parallel(body, (void *)call, threads, 0); }

// The calling thread's share of 0..count, in multiples of `step`.
static void my_share(int64_t count, int64_t step, int64_t *from, int64_t *to) {
    int64_t threads = omp_get_num_threads(), t = omp_get_thread_num(), steps = count / step;
    *from = steps * t / threads * step;
    *to = t + 1 == threads ? count : steps * (t + 1) / threads * step;
}

// Units of work, which threads take one after the other, each with some memory of its own.
typedef struct {
    const void *call;
    int64_t next;  // the unit that no thread has begun yet
    char *memory;
    size_t each;  // bytes of it to a thread
} Units;

static inline int64_t next_unit(Units *units) { return __atomic_fetch_add(&units->next, 1, __ATOMIC_RELAXED); }
static inline void *my_memory(const Units *units) { return units->memory + units->each * omp_get_thread_num(); }

// Has each of the threads call body(units of call), with `bytes` of memory.
static int run_units(void (*body)(void *), const void *call, size_t bytes, int threads) {
    Units units = {.call = call, .each = (bytes + 4095) / 4096 * 4096};
    units.memory = aligned_alloc(4096, units.each * threads);
    if (!units.memory) return OUT_OF_MEMORY;
    run(body, &units, threads);
    free(units.memory);
    return 0;
}

// The next part of some memory, on a cache line of its own.
static void *take(uintptr_t *at, int64_t bytes) {
    void *part = (void *)*at;
    *at += (bytes + 63) / 64 * 64;
    return part;
}

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

static const float NOTHING = -1e30f;  // the score of what is not seen

static inline float float_of(bf16 x) {
    const uint32_t bits = (uint32_t)x << 16;
    float value;
    __builtin_memcpy(&value, &bits, 4);
    return value;
}

static float power_of_2(int32_t exponent) {
    const int32_t bits = (exponent + 127) << 23;
    float power;
    __builtin_memcpy(&power, &bits, 4);
    return power;
}

static inline const uint32_t *words_at(const Matrix *w, int64_t output, int64_t octet) {
    return w->codes + (output / 16 * (w->k / 8) + octet) * 16 + output % 16;
}

// A row of activations in fixed point. In each group of 32 inputs x = (d0 + 256 * d1 + 65536 * d2) * unit, the d's
// signed bytes and the unit a power of two, 23 bits below the largest |x| of the group: bfloat16 has 8 bits, so only
// what float32 would lose in the sum as well is rounded. A dot product with codes is then three of bytes, and exact.
// Where the largest |x| is at most 32 times the mean of the others, d0 is rounded away: 15 bits below the largest, so
// that at most 2^-10 of that mean is lost, half of what rounding it to bfloat16 may lose.
typedef struct {
    int8_t *digits;   // [3, k], of each 8 inputs first the even ones, then the odd ones
    int32_t *start;   // [k / 32, 3], -8 * sum of the digits: what the codes' offset of 8 comes to
    float *unit;      // [k / 32]
    int32_t *lowest;  // [k / 32], the first d that is not 0 everywhere: 0 or 1
} Fixed;

// The first digit of a group that is not 0 everywhere in any of these rows.
static inline int lowest_of(const Fixed *x, int rows, int64_t group) {
    int lowest = 1;
    for (int m = 0; m < rows; m++) lowest &= x[m].lowest[group];
    return lowest;
}

static size_t fixed_bytes(int64_t k) { return k / 32 * (96 + 20); }

static Fixed fixed_at(const void *memory, int64_t k, int64_t row) {
    char *p = (char *)memory + row * fixed_bytes(k);
    float *unit = (float *)(p + 3 * k + k / 32 * 12);
    return (Fixed){(int8_t *)p, (int32_t *)(p + 3 * k), unit, (int32_t *)unit + k / 32};
}
