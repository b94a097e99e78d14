// Calls every kernel on the same random numbers and writes what comes out:
// "NAME COUNT\n", then COUNT numbers of 16 bits, again and again. Compiled for
// several instruction sets by programs.py.

#include <stdio.h>
#include <string.h>

#include "../../csrc/int4.c"

enum { THREADS = 2 };

static uint64_t state = 1;

static uint32_t random_bits(void) {
  state = state * 6364136223846793005u + 1442695040888963407u;
  return state >> 32;
}

static void *memory(size_t bytes) {
  void *p = aligned_alloc(64, (bytes + 63) / 64 * 64);
  return memset(p, 0, bytes);
}

// Of either sign, about 2^exponent.
static bf16 number(int exponent) {
  uint32_t bits = random_bits();
  return (bits & 0x807F) | (127 + exponent - (bits >> 16) % 4) << 7;
}

static bf16 *numbers(int64_t count, int exponent) {
  bf16 *x = memory(count * 2);
  for (int64_t i = 0; i < count; i++)
    x[i] = number(exponent);
  return x;
}

// One of 50 is 128 times as large, so that some groups have an outlier.
static bf16 *activations(int64_t count, int exponent) {
  bf16 *x = memory(count * 2);
  for (int64_t i = 0; i < count; i++)
    x[i] = number(random_bits() % 50 ? exponent : exponent + 7);
  return x;
}

static Matrix matrix(int n, int k, int scale_type) {
  uint32_t *codes = memory(n * k / 2);
  for (int i = 0; i < n * k / 8; i++)
    codes[i] = random_bits();
  Matrix w = {.codes = codes, .scale_type = scale_type, .n = n, .k = k};
  bf16 *scales = numbers(n * k / 32 * 2, -6);
  for (int i = 0; i < n * k / 32; i++) {
    if (scale_type == 1)
      scales[i] = 0x2000 | random_bits() % 0x800; // float16
    if (scale_type == 2)
      ((float *)scales)[i] = float_of(number(-6)) * 1.1f;
  }
  w.scales = scales;
  return w;
}

static void write_out(const char *name, int which, const void *numbers,
                      int64_t count) {
  printf("%s-%d %lld\n", name, which, (long long)count);
  fwrite(numbers, 2, count, stdout);
}

static void write_products(int scale_type) {
  const Matrix w = matrix(96, 128, scale_type);
  for (int rows = 1; rows < 20; rows += 1 + rows / 5) {
    Product call = {.weight = w,
                    .x = activations(rows * w.k, 1),
                    .rows = rows,
                    .y = memory(rows * w.n * 2)};
    call.work = memory((rows + 12) * w.k / 2 * 9);
    int4_linear(&call, THREADS);
    write_out("linear", scale_type * 100 + rows, call.y, rows * w.n);
    int4_product(&call, THREADS);
    write_out("product", scale_type * 100 + rows, call.y, rows * w.n);
  }
  Dequantize call = {
      .weight = w, .first = 32, .count = 64, .tile = memory(64 * w.k * 2)};
  int4_dequantize(&call, THREADS);
  write_out("dequantize", scale_type, call.tile, 64 * w.k);
}

static void write_dense(void) {
  for (int rows = 5; rows < 40; rows += 17) {
    const int n = 72, k = 296;
    Dense call = {.weight = numbers(n * k, -2),
                  .bias = numbers(n, 3),
                  .x = numbers(rows * k, 1),
                  .rows = rows,
                  .n = n,
                  .k = k,
                  .work = memory((rows + 12 + n + 32) * k * 5),
                  .y = memory(rows * n * 2)};
    int4_dense(&call, THREADS);
    write_out("dense", rows, call.y, rows * n);
  }
}

static void write_packing(void) {
  const int n = 288, k = 64;
  uint32_t *qweight = memory(n * k / 2);
  for (int i = 0; i < n * k / 8; i++)
    qweight[i] = random_bits();
  PackAwq matrix = {.qweight = qweight,
                    .scales = numbers(n * k / 32, 0),
                    .codes = memory(n * k / 2),
                    .block_scales = memory(n * k / 32 * 2),
                    .bytes = 2,
                    .n = n,
                    .k = k};
  PackAwqs all = {.first = &matrix, .count = 1};
  int4_pack_awq(&all, THREADS);
  write_out("pack", 0, matrix.codes, n * k / 4);
  write_out("pack", 1, matrix.block_scales, n * k / 32);
  PackRows rows = {
      .words = qweight, .codes = memory(n * k / 2), .n = n, .k = k};
  int4_pack_rows(&rows, THREADS);
  write_out("pack", 2, rows.codes, n * k / 4);
}

static void write_recovered(void) {
  const int n = 5, k = 96;
  bf16 *weight = memory(n * k * 2);
  float *scales = memory(n * k / 32 * 4);
  for (int g = 0; g < n * k / 32; g++) {
    scales[g] = (g % 5 - 1) * 0.125f; // of both signs, and 0
    for (int i = 0; i < 32; i++) {
      const float product = ((int)(random_bits() % 16) - 8) * scales[g];
      uint32_t bits;
      memcpy(&bits, &product, 4);
      weight[g * 32 + i] = bits >> 16;
    }
  }
  Recover call = {.weight = weight,
                  .scales = scales,
                  .words = memory(n * k / 2),
                  .n = n,
                  .k = k};
  int4_recover(&call, THREADS);
  write_out("pack", 3 + call.wrong, call.words, n * k / 4);
  weight[77] += 1;
  int4_recover(&call, THREADS);
  write_out("pack", 3 + call.wrong, call.words, n * k / 4);
}

static void write_elementwise(void) {
  const int rows = 3, n = 96;
  Norm norm = {.x = numbers(rows * n, 3),
               .weight = numbers(n, -1),
               .rows = rows,
               .n = n,
               .eps = 1e-6f};
  norm.y = memory(rows * n * 2);
  int4_rms_norm(&norm, THREADS);
  write_out("norm", 0, norm.y, rows * n);
  Gated gated = {.gate = numbers(rows * n, 2),
                 .up = numbers(rows * n, 1),
                 .n = rows * n,
                 .y = memory(rows * n * 2)};
  int4_gated(&gated, THREADS);
  write_out("gated", 0, gated.y, rows * n);
  gated.up = NULL;
  int4_gated(&gated, THREADS);
  write_out("gelu", 0, gated.y, rows * n);
}

static void write_attention(int64_t dim) {
  const int64_t heads = 4, kv_heads = 2, queries = 70, keys = 90;
  Attention call = {
      .query = numbers(heads * queries * dim, 0),
      .key = numbers(kv_heads * keys * dim, 0),
      .value = numbers(kv_heads * keys * dim, 1),
      .query_strides = {heads * queries * dim, queries * dim, dim},
      .key_strides = {kv_heads * keys * dim, keys * dim, dim},
      .value_strides = {kv_heads * keys * dim, keys * dim, dim},
      .batch = 1,
      .heads = heads,
      .kv_heads = kv_heads,
      .queries = queries,
      .keys = keys,
      .dim = dim,
      .scaling = 0.1f,
      .out = memory(queries * heads * dim * 2)};
  int32_t *first = memory(queries * 4), *end = memory(queries * 4);
  for (int i = 0; i < queries; i++)
    first[i] = i / 2, end[i] = i + 21;
  call.first = first, call.end = end;
  int4_attention(&call, THREADS);
  write_out("attention", dim, call.out, queries * heads * dim);
  call.first = call.end = NULL;
  int4_attention(&call, THREADS);
  write_out("square", dim, call.out, queries * heads * dim);
}

static void write_layer(int64_t rows, int64_t few, int64_t length, int heads,
                        int kv_heads, int head_dim) {
  const int width = 128, inner = 192;
  Layer layer = {.q = matrix(heads * head_dim, width, 0),
                 .k = matrix(kv_heads * head_dim, width, 1),
                 .v = matrix(kv_heads * head_dim, width, 2),
                 .o = matrix(width, heads * head_dim, 0),
                 .gate = matrix(inner, width, 1),
                 .up = matrix(inner, width, 2),
                 .down = matrix(width, inner, 0),
                 .heads = heads,
                 .kv_heads = kv_heads,
                 .head_dim = head_dim,
                 .eps = 1e-6f,
                 .scaling = 0.2f};
  for (int i = 0; i < 6; i++)
    layer.norms[i] = numbers(i == 1 || i == 2 ? head_dim : width, -1);
  const int64_t cached = rows * kv_heads * length * head_dim;
  Step step = {.layer = &layer,
               .rows = rows,
               .few = few,
               .hidden = numbers(rows * width, 1),
               .cos = numbers(head_dim, 0),
               .sin = numbers(head_dim, 0),
               .keys = numbers(cached, 0),
               .values = numbers(cached, 0),
               .head_stride = length * head_dim,
               .length = length,
               .out = memory(rows * width * 2)};
  int4_decoder_layers(&(Steps){&step, 1}, THREADS);
  const int which = ((length * 10 + rows) * 10 + few) * 10 + heads;
  write_out("layer", which, step.out, rows * width);
  write_out("keys", which, step.keys, cached);
}

int main(void) {
  for (int scale_type = 0; scale_type < 3; scale_type++)
    write_products(scale_type);
  write_dense();
  write_packing();
  write_recovered();
  write_elementwise();
  for (int64_t dim = 64; dim < 80; dim += 8)
    write_attention(dim);
  write_layer(1, 8, 40, 4, 2, 32);
  write_layer(3, 8, 40, 4, 2, 32);
  write_layer(3, 1, 40, 4, 2, 32);
  write_layer(1, 8, 2100, 4, 2, 32);
  write_layer(2, 8, 40, 7, 1, 96);
  return 0;
}
