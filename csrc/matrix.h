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

typedef uint32_t lanes __attribute__((vector_size(64)));

static void pack_awq_body(void *call) {
    const PackAwq *c = call;
    static const int order[8] = {0, 2, 4, 6, 1, 3, 5, 7};
    static const uint32_t low[5] = {0, 0x0F0F0F0F, 0x00FF00FF, 0, 0x0000FFFF};
    int64_t from, to, octets = c->k / 8, words = c->n / 8;
    my_share(words, 2, &from, &to);
    for (int64_t j = from; j < to; j += 16) {
        int64_t wide = to - j < 16 ? to - j : 16;
        for (int64_t o = 0; o < octets; o++) {
            lanes v[8] = {0};
            for (int t = 0; t < 8; t++) {
                const uint32_t *row = c->qweight + (o * 8 + t) * words + j;
                __builtin_prefetch(row + 32 * words);
                __builtin_memcpy(&v[t], row, wide * 4);
            }
            for (int h = 4; h; h /= 2)  // transposes 8 x 8 nibbles in each lane: exchanges halves, quarters, eighths
                for (int t = 0; t < 8; t++)
                    if (!(t & h)) {
                        lanes change = (v[t] >> 4 * h ^ v[t + h]) & low[h];
                        v[t + h] ^= change;
                        v[t] ^= change << 4 * h;
                    }
            for (int64_t lane = 0; lane < wide; lane++) {
                uint32_t *block = c->codes + ((j + lane) / 2 * octets + o) * 16 + lane % 2 * 8;
                for (int i = 0; i < 8; i++) block[order[i]] = v[i][lane];
            }
        }
    }
}

void int4_pack_awq(const PackAwq *call, int threads) { run(pack_awq_body, call, threads); }
