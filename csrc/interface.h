// Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
//
// What Python calls. int4_cpu_library.py declares the same structs, field by field.
//
// Every function runs on `threads` threads of torch's own OpenMP runtime. Those that return an int need memory of their
// own: they return 0, or OUT_OF_MEMORY without having computed or changed anything.

#include <fcntl.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

typedef uint16_t bf16;

enum { OUT_OF_MEMORY = 1 };

// A matrix W [n, k] = (code - 8) * scale, in blocks of 16 outputs. n is a multiple of 32, k of 32.
typedef struct {
    const uint32_t *codes;  // [n / 16, k / 8, 16], eight codes of consecutive inputs to a word, lowest nibble first
    const void *scales;     // [n / 16, k / 32, 16]
    int32_t scale_type;     // 0 bfloat16, 1 float16, 2 float32
    int32_t n, k;
} Matrix;

// y = x W.T
typedef struct {
    Matrix weight;
    const bf16 *x;  // [rows, k]
    int64_t rows;
    void *work;  // int4_product: nine bytes for two inputs of x and of 12 rows more, at a multiple of 64; else unused
    bf16 *y;     // [rows, n]
} Product;

// Few rows: activations in fixed point (base.h), exact integer dot products of groups, scaled and summed in float32.
int int4_linear(const Product *call, int threads);

// Many rows: the weights in bfloat16 (AVX512 and NEON with BF16) or float32, the sums in float32; with AVX2, and with
// AVX512 that has VNNI and no BF16, as int4_linear, to the bit.
void int4_product(const Product *call, int threads);

// y = x W.T + bias, of bfloat16 weights and many rows; with AVX2 or VNNI in fixed point (pairs.h), else in floats.
typedef struct {
    const bf16 *weight, *bias;  // [n, k], [n] or NULL; k is a multiple of 8
    const bf16 *x;              // [rows, k]
    int64_t rows, n, k;
    void *work;  // at a multiple of 64, five bytes for each number of x, of weight, and of 12 rows and 32 outputs more
    bf16 *y;     // [rows, n]
} Dense;

void int4_dense(const Dense *call, int threads);

// Outputs first .. first + count, multiples of 32, as bfloat16 columns.
typedef struct {
    Matrix weight;
    int64_t first, count;
    bf16 *tile;  // [k, count]
} Dequantize;

void int4_dequantize(const Dequantize *call, int threads);

// Some outputs' weights, each float32(code * scale) rounded to bfloat16.
typedef struct {
    Matrix weight;
    const int64_t *outputs;  // [count]
    int64_t count;
    bf16 *rows;  // [count, k]
} Rows;

void int4_rows(const Rows *call, int threads);

// AWQ's words, in which nibble i is output 8 * j + {0, 2, 4, 6, 1, 3, 5, 7}[i], and its scales to those of a Matrix.
typedef struct {
    const uint32_t *qweight;  // [k, n / 8]
    const void *scales;       // [k / 32, n]
    uint32_t *codes;          // [n / 16, k / 8, 16], at a multiple of 32 bytes
    void *block_scales;       // [n / 16, k / 32, 16]
    int64_t bytes;            // of a scale: 2 or 4
    int64_t n, k;
} PackAwq;

// Several. Calls with the same PackAwqs can run at once: each takes the next that none has begun, until none is left.
typedef struct {
    const PackAwq *first;  // [count]
    int64_t count;
    int64_t next;      // none has begun it yet
    int32_t in_files;  // qweight and scales are in mapped files, the pages of which can go when they were read
} PackAwqs;

void int4_pack_awq(PackAwqs *call, int threads);

// Row-major words to those of a Matrix.
typedef struct {
    const uint32_t *words;  // [n, k / 8], eight codes of consecutive inputs to a word, lowest nibble first
    uint32_t *codes;        // [n / 16, k / 8, 16], at a multiple of 32 bytes
    int64_t n, k;
} PackRows;

void int4_pack_rows(const PackRows *call, int threads);

// Weights, which are products of codes and scales rounded to bfloat16, to row-major words; 0 has the code 8.
typedef struct {
    const bf16 *weight;   // [n, k]
    const float *scales;  // [n, k / 32]
    uint32_t *words;      // [n, k / 8]
    int64_t n, k;
    int32_t in_file;  // whether the weights are in a mapped file, whose pages are let go as they are read
    int32_t wrong;    // set to 1 where a weight is no such product
} Recover;

void int4_recover(Recover *call, int threads);

// A file that is to be read from disk into the system's cache while the caller goes on.
typedef struct {
    int64_t bytes;
    int32_t file;     // its descriptor
    int32_t stopped;  // set by another thread, it ends this
} ReadAhead;

void int4_read_ahead(ReadAhead *call, int threads);

// Asks for pages of 2 MB inside this memory. Refusal does no harm.
void int4_huge_pages(char *memory, int64_t bytes);

// As Gemma3RMSNorm: in float32, times 1 + weight, rounded once. n is a multiple of 16.
typedef struct {
    const bf16 *x, *weight;  // [rows, n], [n]
    int64_t rows, n;
    float eps;
    bf16 *y;  // [rows, n]
} Norm;

void int4_rms_norm(const Norm *call, int threads);

// y = gelu_tanh(gate) * up, of n numbers each, or where up is NULL, gelu_tanh(gate); n is a multiple of 16.
typedef struct {
    const bf16 *gate, *up;
    int64_t n;
    bf16 *y;
} Gated;

void int4_gated(const Gated *call, int threads);

// What a decoder layer is made of.
typedef struct {
    Matrix q, k, v, o, gate, up, down;
    const bf16 *norms[6];  // input, q, k, post_attention, pre_feedforward, post_feedforward
    int32_t heads, kv_heads, head_dim;
    float eps, scaling;
} Layer;

// One token of each of `rows` sequences through a decoder layer.
typedef struct {
    const Layer *layer;
    int64_t rows;
    int64_t few;            // up to how many rows products are as int4_linear's, beyond them as int4_product's; >= 1
    const bf16 *hidden;     // [rows, width]
    const bf16 *cos, *sin;  // [rows, head_dim], or of all rows [head_dim] and a stride of 0
    int64_t table_stride;   // of cos and sin, in numbers
    bf16 *keys, *values;    // [rows, kv_heads, length, head_dim], the last position still to be written
    int64_t head_stride;    // of keys and values, in numbers
    int64_t length;         // positions to attend to, the new one included
    const uint8_t *mask;    // [rows, length], 0: not attended to; or NULL: attend to all
    int64_t mask_stride;    // 0 where all rows share one
    bf16 *out;              // [rows, width]
} Step;

// Steps through several layers, one after the other.
typedef struct {
    const Step *first;  // [count]
    int64_t count;
} Steps;

// hidden -> out; appends to keys and values. Rounds to bfloat16 where transformers' Gemma 3 does.
int int4_decoder_layers(const Steps *call, int threads);

// Attention of many queries. Query r of a sequence sees the keys first[r] .. end[r], less those where `seen` is 0. With
// AVX2 or VNNI, where each sees all, in fixed point (square.h).
typedef struct {
    const bf16 *query, *key, *value;                             // [batch, heads or kv_heads, queries or keys, dim]
    int64_t query_strides[3], key_strides[3], value_strides[3];  // of batch, head and row, in numbers
    const int32_t *first, *end;                                  // [batch, queries]; or NULL: all keys are seen
    int64_t rule_stride;                                         // of sequences in both, 0 where they share one
    const uint8_t *seen;                                         // [batch, keys], or NULL
    int64_t seen_stride;                                         // of sequences, in bytes
    int64_t batch, heads, kv_heads, queries, keys, dim;          // dim is a multiple of 8
    float scaling;
    bf16 *out;  // [batch, queries, heads, dim]
} Attention;

int int4_attention(const Attention *call, int threads);
