// Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
//
// A matrix in memory: its scales, its values as bfloat16, and how it comes from AWQ's words.

static inline floats scales_at(const Matrix *w, int64_t output, int64_t group) {
    const int64_t at = (output / 16 * (w->k / 32) + group) * 16 + output % 16;
    if (w->scale_type == 2) return load((const float *)w->scales + at);
    const uint16_t *halves = (const uint16_t *)w->scales + at;
    return w->scale_type == 0 ? load_bf16(halves) : load_f16(halves);
}

static void dequantize_body(void *call) {
    const Dequantize *c = call;
    int64_t from, to;
    my_share(c->count, 32, &from, &to);
    for (int64_t column = from; column < to; column += WIDTH) {
        const int64_t left = c->first + column, right = left + LANES;
        for (int64_t octet = 0; octet < c->weight.k / 8; octet++) {
            ints word[2] = {load_words(words_at(&c->weight, left, octet)),
                            load_words(words_at(&c->weight, right, octet))};
            floats scale[2] = {scales_at(&c->weight, left, octet / 4), scales_at(&c->weight, right, octet / 4)};
            for (int i = 0; i < 8; i++)
                store_two_bf16(c->tile + (octet * 8 + i) * c->count + column, codes_of(word[0], i) * scale[0],
                               codes_of(word[1], i) * scale[1]);
        }
    }
}

void int4_dequantize(const Dequantize *call, int threads) { run(dequantize_body, call, threads); }

static void rows_body(void *call) {
    const Rows *c = call;
    const int64_t k = c->weight.k;
    int64_t from, to;
    my_share(c->count, 1, &from, &to);
    for (int64_t row = from; row < to; row++) {
        const int64_t output = c->outputs[row], lane = output % LANES;
        for (int64_t g = 0; g < k / 32; g++) {
            const floats scales = scales_at(&c->weight, output - lane, g);
            float values[32] __attribute__((aligned(64)));
            for (int i = 0; i < 32; i++) {
                const uint32_t word = *words_at(&c->weight, output, g * 4 + i / 8);
                values[i] = ((int32_t)(word >> i % 8 * 4 & 15) - 8) * scales[lane];
            }
            for (int i = 0; i < 32; i += LANES) store_bf16(c->rows + row * k + g * 32 + i, load(values + i));
        }
    }
}

void int4_rows(const Rows *call, int threads) { run(rows_body, call, threads); }

void int4_huge_pages(char *memory, int64_t bytes) {
    const uintptr_t huge = 1 << 21;
    uintptr_t from = ((uintptr_t)memory + huge - 1) / huge * huge, to = ((uintptr_t)memory + bytes) / huge * huge;
    if (from < to) madvise((void *)from, to - from, MADV_HUGEPAGE);
}

// Words of AWQ side by side, each with 8 outputs of one input.
typedef uint32_t words __attribute__((vector_size(32)));

#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (words){__VA_ARGS__})
#endif

// Exchanges the lanes of a whose number has bit h with those of b whose number has not.
static inline void exchange_lanes(words *a, words *b, int h) {
    const words x = *a, y = *b;
    if (h == 4) *a = SHUFFLE(x, y, 0, 1, 2, 3, 8, 9, 10, 11), *b = SHUFFLE(x, y, 4, 5, 6, 7, 12, 13, 14, 15);
    if (h == 2) *a = SHUFFLE(x, y, 0, 1, 8, 9, 4, 5, 12, 13), *b = SHUFFLE(x, y, 2, 3, 10, 11, 6, 7, 14, 15);
    if (h == 1) *a = SHUFFLE(x, y, 0, 8, 2, 10, 4, 12, 6, 14), *b = SHUFFLE(x, y, 1, 9, 3, 11, 5, 13, 7, 15);
}

// x[i][j] and x[j][i] change places.
static inline void transpose(words x[8]) {
    for (int h = 4; h; h /= 2)
        for (int i = 0; i < 8; i++)
            if (!(i & h)) exchange_lanes(&x[i], &x[i | h], h);
}

// Rows [count, n], `stride` apart, n a multiple of 8, to 8 columns of a panel [n / per, WIDTH], `per` numbers of 16
// bits to a cell; 0 where there is no row. Eight by 16 numbers change places in registers.
static inline __attribute__((always_inline)) void fill_columns(const uint16_t *rows, int64_t stride, int64_t count,
                                                               int64_t n, int per, uint32_t *panel) {
    for (int64_t i = 0; i < n; i += 16) {
        words pairs[8] = {0};  // of numbers; of a row, then of all eight
        for (int64_t j = 0; j < 8 && j < count; j++)
            __builtin_memcpy(&pairs[j], rows + j * stride + i, n - i >= 16 ? 32 : 16);
        transpose(pairs);
        for (int64_t p = 0; p < 8 && i + 2 * p < n; p++) {
            uint32_t *to = panel + (i + 2 * p) / per * WIDTH;
            const words low = per == 2 ? pairs[p] : pairs[p] << 16, high = pairs[p] & 0xFFFF0000;
            __builtin_memcpy(to, &low, 32);
            if (per == 1) __builtin_memcpy(to + WIDTH, &high, 32);
        }
    }
}

// As `exchange_lanes`, of the nibbles of every lane.
static inline void exchange_nibbles(words *a, words *b, int h) {
    const uint32_t low = h == 4 ? 0x0000FFFF : h == 2 ? 0x00FF00FF : 0x0F0F0F0F;
    const words change = (*a >> 4 * h ^ *b) & low;
    *b ^= change;
    *a ^= change << 4 * h;
}

// Writes a line of 64 bytes: past the caches, which would read it first, since nothing reads it soon.
static inline void store_line(uint32_t *line, words left, words right) {
#ifdef __AVX__
    _mm256_stream_si256((__m256i *)line, (__m256i)left);
    _mm256_stream_si256((__m256i *)line + 1, (__m256i)right);
#else
    __builtin_memcpy(line, &left, 32);
    __builtin_memcpy(line + 8, &right, 32);
#endif
}

// 8 inputs of up to 8 words side by side: transposed by nibbles, a word has 8 inputs of one output; by lanes, 8 outputs
// stand side by side. Two such halves are a line of a block.
static inline void pack_octet(const PackAwq *c, int64_t octet, int64_t word, int64_t count) {
    static const int order[8] = {0, 2, 4, 6, 1, 3, 5, 7};
    words inputs[8] = {0}, outputs[8];
    for (int i = 0; i < 8; i++)
        __builtin_memcpy(&inputs[i], c->qweight + (octet * 8 + i) * (c->n / 8) + word, count * 4);
    for (int h = 4; h; h /= 2)
        for (int i = 0; i < 8; i++)
            if (!(i & h)) exchange_nibbles(&inputs[i], &inputs[i | h], h);
    for (int i = 0; i < 8; i++) outputs[order[i]] = inputs[i];
    transpose(outputs);
    uint32_t *block = c->codes + (word / 2 * (c->k / 8) + octet) * 16;
    for (int64_t i = 0; i < count; i += 2) store_line(block + i * c->k, outputs[i], outputs[i + 1]);
}

static void pack_awq_body(void *call) {
    const PackAwq *c = call;
    enum { STRIP = 1024 };  // words that are read of an input before the next one, which lies in another page
    const int64_t groups = c->k / 32, sixteen = 16 * c->bytes;
    int64_t from, to;
    my_share(c->n / 8, 2, &from, &to);
    for (int64_t strip = from; strip < to; strip += STRIP) {
        const int64_t end = least(strip + STRIP, to);
        for (int64_t octet = 0; octet < c->k / 8; octet++) {
            int64_t word = strip;
            for (; word + 8 <= end; word += 8) pack_octet(c, octet, word, 8);
            if (word < end) pack_octet(c, octet, word, end - word);
        }
        for (int64_t group = 0; group < groups; group++)
            for (int64_t block = strip / 2; block < end / 2; block++)
                __builtin_memcpy((char *)c->block_scales + (block * groups + group) * sixteen,
                                 (const char *)c->scales + group * c->n * c->bytes + block * sixteen, sixteen);
    }
#ifdef __AVX__
    _mm_sfence();
#endif
}

// Lets go of the whole pages in this part of a mapped file.
static void leave_pages(const void *memory, int64_t bytes) {
    const uintptr_t page = sysconf(_SC_PAGESIZE);
    const uintptr_t from = ((uintptr_t)memory + page - 1) / page * page, to = ((uintptr_t)memory + bytes) / page * page;
    if (from < to) madvise((void *)from, to - from, MADV_DONTNEED);
}

// One thread: the disk is what takes its time.
void int4_read_ahead(ReadAhead *call, int threads) {
    (void)threads;
#ifdef POSIX_FADV_WILLNEED
    const int64_t step = 1 << 17;  // of more the system reads this much only (Linux: read_ahead_kb)
    for (int64_t at = 0; at < call->bytes && !__atomic_load_n(&call->stopped, __ATOMIC_RELAXED); at += step)
        posix_fadvise(call->file, at, step, POSIX_FADV_WILLNEED);
#endif
}

void int4_pack_awq(PackAwqs *call, int threads) {
    int64_t i;
    while ((i = __atomic_fetch_add(&call->next, 1, __ATOMIC_RELAXED)) < call->count) {
        const PackAwq *c = call->first + i;
        run(pack_awq_body, c, threads);
        if (call->in_files) {
            leave_pages(c->qweight, c->k * c->n / 2);
            leave_pages(c->scales, c->k / 32 * c->n * c->bytes);
        }
    }
}

static void pack_rows_body(void *call) {
    const PackRows *c = call;
    const int64_t octets = c->k / 8;
    int64_t from, to;
    my_share(c->n, 16, &from, &to);
    for (int64_t row = from; row < to; row += 16)
        for (int64_t octet = 0; octet < octets; octet += 8) {
            const int64_t count = least(8, octets - octet);
            words rows[2][8] = {{{0}}};
            for (int i = 0; i < 16; i++)
                __builtin_memcpy(&rows[i / 8][i % 8], c->words + (row + i) * octets + octet, count * 4);
            transpose(rows[0]);
            transpose(rows[1]);
            uint32_t *line = c->codes + (row * octets / 16 + octet) * 16;
            for (int64_t i = 0; i < count; i++) store_line(line + i * 16, rows[0][i], rows[1][i]);
        }
#ifdef __AVX__
    _mm_sfence();
#endif
}

void int4_pack_rows(const PackRows *call, int threads) { run(pack_rows_body, call, threads); }

typedef float eight __attribute__((vector_size(32)));
typedef uint16_t eight_halves __attribute__((vector_size(16)));

// The codes of eight weights, in 0..15; `wrong` gets bits where they are none.
static inline words codes_of_weights(const bf16 *weight, float scale, words *wrong) {
    const eight whole = (eight){0} + 12582912;  // 1.5 * 2^23, to which a number is added to be rounded
    eight_halves halves;
    __builtin_memcpy(&halves, weight, sizeof halves);
    const eight w = (eight)(__builtin_convertvector(halves, words) << 16);
    const eight rounded = w / (scale ? scale : 1) + whole;
    const words bits = (words)((rounded - whole) * scale);
    const words again = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000;
    const words code = (words)(rounded + 8) - (words)whole;
    *wrong |= (words)((eight)again != w) | (code & ~15u);
    return code;
}

// Up to eight words of a row. Inlined, so that `count` is known where it is 8.
static inline __attribute__((always_inline)) void recover_words(Recover *c, int64_t octet, int64_t count,
                                                                words *wrong) {
    words codes[8], packed = {0};
    for (int64_t i = 0; i < 8; i++)
        codes[i] =
            i < count ? codes_of_weights(c->weight + (octet + i) * 8, c->scales[(octet + i) / 4], wrong) : packed;
    transpose(codes);
    for (int i = 0; i < 8; i++) packed |= codes[i] << 4 * i;
    __builtin_memcpy(c->words + octet, &packed, count * 4);
}

static void recover_body(void *call) {
    Recover *c = call;
    words wrong = {0};
    int64_t from, to;
    my_share(c->n, 1, &from, &to);
    int64_t octet = from * c->k / 8;
    const int64_t end = to * c->k / 8;
    for (; octet + 8 <= end; octet += 8) recover_words(c, octet, 8, &wrong);
    if (octet < end) recover_words(c, octet, end - octet, &wrong);
    for (int i = 0; i < 8; i++)
        if (wrong[i]) __atomic_store_n(&c->wrong, 1, __ATOMIC_RELAXED);
}

void int4_recover(Recover *call, int threads) {
    run(recover_body, call, threads);
    if (call->in_file) leave_pages(call->weight, call->n * call->k * sizeof(bf16));
}
