// Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
//
// Many rows: tiles in fixed point, where a lane multiplies two 16-bit integers at once, twice as many as floats: the
// arithmetic of few_rows.h, to the bit. Of a group's numbers the upper 16 bits are multiplied, and the low byte where
// one of the tile's rows has any.

typedef int16_t halves __attribute__((vector_size(sizeof(ints))));

enum { PANEL = 256, PAIRS = 32 / 2 };  // inputs to a panel; pairs of inputs to a group

// The codes of WIDTH outputs and some inputs, less 8, in pairs as `store_pairs` makes them: of each 8 inputs 0 and 4, 1
// and 5, 2 and 6, 3 and 7, which a shift and a mask take out of a word. And the scales of their groups.
typedef struct {
    int32_t codes[PANEL / 2 * WIDTH];
    float scales[PANEL / 32 * WIDTH];
} __attribute__((aligned(64))) Panel;

// A tile's numbers of one group, their upper 16 bits, [PAIRS, ROWS]; times the unit, or, where one of them has a low
// byte, times 256 units.
typedef struct {
    int32_t high[PAIRS * ROWS];
    float unit[ROWS];
    int32_t has_low;
} __attribute__((aligned(64))) Group;

// Their low bytes as numbers of 16 bits; without meaning where none has one.
typedef struct {
    int32_t pairs[PAIRS * ROWS];
} Low;

_Static_assert((sizeof(Group) + sizeof(Low)) * 2 <= ROWS * 32 * 9, "Product.work has nine bytes for two inputs");

// Inputs k0 .. k0 + count.
static void fill_panel(const Matrix *w, int64_t output, int64_t k0, int64_t count, Panel *panel) {
    for (int half = 0; half < 2; half++, output += LANES) {
        for (int64_t g = 0; g < count / 32; g++)
            store(panel->scales + g * WIDTH + half * LANES, scales_at(w, output, k0 / 32 + g));
        for (int64_t octet = 0; octet < count / 8; octet++) {
            const ints word = load_words(words_at(w, output, k0 / 8 + octet));
            for (int i = 0; i < 4; i++) {
                const ints less_8 = (ints)((halves)(word >> 4 * i & 0x000F000F) - 8);
                __builtin_memcpy(panel->codes + (octet * 4 + i) * WIDTH + half * LANES, &less_8, sizeof less_8);
            }
        }
    }
}

static inline Group *group_at(const Product *c, int64_t tile, int64_t group) {
    return (Group *)c->work + tile * (c->weight.k / 32) + group;
}

// The low bytes stand behind all groups: most are not read.
static inline Low *low_at(const Product *c, int64_t tile, int64_t group) {
    return (Low *)group_at(c, (c->rows + ROWS - 1) / ROWS, 0) + tile * (c->weight.k / 32) + group;
}

static void pack_tile(const Product *c, int64_t tile) {
    const int64_t k = c->weight.k, rows = least(c->rows - tile * ROWS, ROWS);
    for (int64_t g = 0; g < k / 32; g++) {
        Group *group = group_at(c, tile, g);
        int32_t high[ROWS][PAIRS] = {0}, low[ROWS][PAIRS] = {0};
        float unit[ROWS] = {0};
        group->has_low = 0;
        for (int64_t r = 0; r < rows; r++) {
            ints whole[PARTS];
            int32_t lowest;
            unit[r] = group_to_fixed(c->x + (tile * ROWS + r) * k + g * 32, whole, &lowest);
            group->has_low |= !lowest;
            for (int p = 0; p < PARTS; p++) {
                const ints byte = low_byte(whole[p]);
                store_pairs(high[r] + p * LANES / 2, (whole[p] - byte) >> 8);
                store_pairs(low[r] + p * LANES / 2, byte);
            }
        }
        for (int r = 0; r < ROWS; r++) group->unit[r] = group->has_low ? unit[r] : unit[r] * 256;
        for (int i = 0; i < PAIRS; i++)
            for (int r = 0; r < ROWS; r++) group->high[i * ROWS + r] = high[r][i];
        for (int i = 0; i < PAIRS && group->has_low; i++)
            for (int r = 0; r < ROWS; r++) low_at(c, tile, g)->pairs[i * ROWS + r] = low[r][i];
    }
}

// totals [rows, WIDTH] += x [PAIRS, ROWS] times codes [PAIRS, WIDTH]. `rows` is a constant where it is inlined.
static inline __attribute__((always_inline)) void add_products(const int32_t *x, const int32_t *codes, int rows,
                                                               ints totals[][2]) {
    for (int i = 0; i < PAIRS; i++, x += ROWS, codes += WIDTH) {
        const ints left = load_words((const uint32_t *)codes), right = load_words((const uint32_t *)codes + LANES);
        for (int r = 0; r < rows; r++) {
            const ints pair = x[r] - (ints){0};  // in each lane
            totals[r][0] = add_pairs(totals[r][0], pair, left);
            totals[r][1] = add_pairs(totals[r][1], pair, right);
        }
    }
}

// sums [rows, WIDTH] += a tile's group times its codes and scales. All of a total has 31 bits (23 of x, 8 of 32 codes).
static inline __attribute__((always_inline)) void multiply_group(const Group *x, const Low *low, const int32_t *codes,
                                                                 const float *scales, int rows, float *sums) {
    ints totals[ROWS][2];
    for (int r = 0; r < rows; r++) totals[r][0] = totals[r][1] = (ints){0};
    add_products(x->high, codes, rows, totals);
    if (x->has_low) {
        for (int r = 0; r < rows; r++)
            for (int h = 0; h < 2; h++) totals[r][h] <<= 8;
        add_products(low->pairs, codes, rows, totals);
    }
    for (int r = 0; r < rows; r++)
        for (int h = 0; h < 2; h++) {
            const floats factor = load(scales + h * LANES) * broadcast(x->unit[r]);
            float *sum = sums + r * WIDTH + h * LANES;
            store(sum, fmadd(to_floats(totals[r][h]), factor, load(sum)));
        }
}

// sums [ROWS, WIDTH] += a tile times a panel; of the last rows, which may be fewer, half a tile where that is enough.
// Meanwhile the next tile's groups are on their way, and, if there are any, the words `ahead` of the next panel.
static void multiply_tile(const Product *c, int64_t tile, int64_t k0, int64_t count, const Panel *panel,
                          const uint32_t *ahead, float *sums) {
    const Group *x = group_at(c, tile, k0 / 32);
    const Low *low = low_at(c, tile, k0 / 32);
    const int half = c->rows - tile * ROWS <= ROWS / 2;
    const Group *next = group_at(c, tile + 1, k0 / 32);
    for (int64_t g = 0; g < count / 32; g++) {
        for (size_t at = 0; at < sizeof(Group); at += 64) __builtin_prefetch((const char *)(next + g) + at, 0, 3);
        for (int i = 0; ahead && i < WIDTH / 4; i++)  // 16 outputs after the other, four octets of each
            __builtin_prefetch(ahead + (i / 4 * (c->weight.k / 8) + g * 4 + i % 4) * 16, 0, 2);
        const int32_t *codes = panel->codes + g * PAIRS * WIDTH;
        if (half)
            multiply_group(x + g, low + g, codes, panel->scales + g * WIDTH, ROWS / 2, sums);
        else
            multiply_group(x + g, low + g, codes, panel->scales + g * WIDTH, ROWS, sums);
    }
}
