// What csrc/avx512.h uses of AVX512, VNNI and BF16, in C for any x86 CPU with
// AVX2: each intrinsic as Intel's guide defines it. To be included first, with
// -include, by a program that is compiled with -DAVX512_BF16, -DAVX512_VNNI or
// -DAVX512.

#include <immintrin.h>
#include <math.h>
#include <stdint.h>

#define EACH(count) for (int i = 0; i < count; i++)

// The lanes of a vector, of each kind.
typedef union {
  __m512 vector;
  __m512i integer;
  __m512bh pairs;
  float f[16];
  int32_t i[16];
  uint32_t u[16];
  int8_t bytes[64];
  uint8_t codes[64];
  uint16_t halves[32];
} Lanes;

static inline float c_of_bf16(uint16_t x) {
  Lanes l = {.u = {(uint32_t)x << 16}};
  return l.f[0];
}

static inline uint16_t c_to_bf16(float x) { // to the nearest, or even
  Lanes l = {.f = {x}};
  if (isnan(x))
    return l.u[0] >> 16 | 64;
  return (l.u[0] + 0x7FFF + (l.u[0] >> 16 & 1)) >> 16;
}

#define LANEWISE(name, result, field, type, a, b, expression)                  \
  static inline type name(type x, type y) {                                    \
    Lanes l = {.result = x}, m = {.result = y};                                \
    EACH(16) {                                                                 \
      __typeof__(l.field[0]) a = l.field[i], b = m.field[i];                   \
      l.field[i] = expression;                                                 \
    }                                                                          \
    return l.result;                                                           \
  }
LANEWISE(c_min_ps, vector, f, __m512, a, b, a < b ? a : b)
LANEWISE(c_max_ps, vector, f, __m512, a, b, a > b ? a : b)
LANEWISE(c_scalef_ps, vector, f, __m512, a, b, ldexpf(a, (int)floorf(b)))
LANEWISE(c_max_epi32, integer, i, __m512i, a, b, a > b ? a : b)
LANEWISE(c_and_si512, integer, u, __m512i, a, b, a & b)
LANEWISE(c_or_si512, integer, u, __m512i, a, b, a | b)

static inline __m512 c_loadu_ps(const void *p) {
  Lanes l;
  __builtin_memcpy(&l, p, 64);
  return l.vector;
}
static inline void c_storeu_ps(void *p, __m512 x) {
  __builtin_memcpy(p, &x, 64);
}
static inline __m512i c_loadu_si512(const void *p) {
  Lanes l;
  __builtin_memcpy(&l, p, 64);
  return l.integer;
}
static inline void c_storeu_si512(void *p, __m512i x) {
  __builtin_memcpy(p, &x, 64);
}
static inline __m512 c_set1_ps(float x) {
  Lanes l;
  EACH(16) l.f[i] = x;
  return l.vector;
}
static inline __m512i c_set1_epi32(int32_t x) {
  Lanes l;
  EACH(16) l.i[i] = x;
  return l.integer;
}
static inline __m512 c_fmadd_ps(__m512 a, __m512 b, __m512 c) {
  Lanes x = {.vector = a}, y = {.vector = b}, z = {.vector = c};
  EACH(16) z.f[i] = fmaf(x.f[i], y.f[i], z.f[i]);
  return z.vector;
}
static inline float c_reduce_add_ps(__m512 x) {
  Lanes l = {.vector = x};
  for (int half = 8; half; half /= 2)
    EACH(half) l.f[i] += l.f[i + half];
  return l.f[0];
}
static inline float c_reduce_max_ps(__m512 x) {
  Lanes l = {.vector = x};
  EACH(16) l.f[0] = l.f[i] > l.f[0] ? l.f[i] : l.f[0];
  return l.f[0];
}
static inline int32_t c_reduce_add_epi32(__m512i x) {
  Lanes l = {.integer = x};
  EACH(15) l.u[0] += l.u[i + 1];
  return l.i[0];
}
static inline int32_t c_reduce_max_epi32(__m512i x) {
  Lanes l = {.integer = x};
  EACH(16) l.i[0] = l.i[i] > l.i[0] ? l.i[i] : l.i[0];
  return l.i[0];
}
static inline __m512 c_cvtepi32_ps(__m512i x) {
  Lanes l = {.integer = x};
  EACH(16) l.f[i] = (float)l.i[i];
  return l.vector;
}
static inline __m512i c_cvtps_epi32(__m512 x) {
  Lanes l = {.vector = x};
  EACH(16) l.i[i] = (int32_t)rintf(l.f[i]);
  return l.integer;
}
static inline __m512 c_roundscale_ps(__m512 x, int to_whole) {
  Lanes l = {.vector = x};
  (void)to_whole; // 0
  EACH(16) l.f[i] = rintf(l.f[i]);
  return l.vector;
}
static inline __m512 c_castsi512_ps(__m512i x) { return (__m512)x; }
static inline __m512i c_slli_epi32(__m512i x, unsigned count) {
  Lanes l = {.integer = x};
  EACH(16) l.u[i] <<= count;
  return l.integer;
}
static inline __m512i c_srli_epi32(__m512i x, unsigned count) {
  Lanes l = {.integer = x};
  EACH(16) l.u[i] >>= count;
  return l.integer;
}
static inline __m512i c_cvtepu16_epi32(__m256i x) {
  Lanes l;
  uint16_t halves[16];
  __builtin_memcpy(halves, &x, 32);
  EACH(16) l.u[i] = halves[i];
  return l.integer;
}
static inline __m512 c_cvtph_ps(__m256i x) {
  Lanes l;
  uint16_t halves[16];
  __builtin_memcpy(halves, &x, 32);
  EACH(16) l.f[i] = _cvtsh_ss(halves[i]);
  return l.vector;
}
static inline __m128i c_cvtepi32_epi8(__m512i x) {
  Lanes l = {.integer = x};
  int8_t bytes[16];
  EACH(16) bytes[i] = (int8_t)l.u[i];
  __m128i low;
  __builtin_memcpy(&low, bytes, 16);
  return low;
}
static inline __m256i c_cvtepi32_epi16(__m512i x) {
  Lanes l = {.integer = x};
  uint16_t halves[16];
  EACH(16) halves[i] = (uint16_t)l.u[i];
  __m256i low;
  __builtin_memcpy(&low, halves, 32);
  return low;
}
static inline __m512 c_permutexvar_ps(__m512i which, __m512 x) {
  Lanes l, w = {.integer = which}, from = {.vector = x};
  EACH(16) l.f[i] = from.f[w.u[i] & 15];
  return l.vector;
}
static inline __m256bh c_cvtneps_pbh(__m512 x) {
  Lanes l = {.vector = x};
  uint16_t halves[16];
  EACH(16) halves[i] = c_to_bf16(l.f[i]);
  __m256bh rounded;
  __builtin_memcpy(&rounded, halves, 32);
  return rounded;
}
static inline __m512bh c_cvtne2ps_pbh(__m512 high, __m512 low) {
  Lanes l, a = {.vector = low}, b = {.vector = high};
  EACH(32) l.halves[i] = c_to_bf16(i < 16 ? a.f[i] : b.f[i - 16]);
  return l.pairs;
}
static inline __m512 c_dpbf16_ps(__m512 sum, __m512bh a, __m512bh b) {
  Lanes l = {.vector = sum}, x = {.pairs = a}, y = {.pairs = b};
  for (int half = 1; half >= 0; half--)
    EACH(16)
  l.f[i] += c_of_bf16(x.halves[2 * i + half]) *
            c_of_bf16(y.halves[2 * i + half]);
  return l.vector;
}
static inline __m512i c_dpbusd_epi32(__m512i sum, __m512i codes, __m512i x) {
  Lanes l = {.integer = sum}, a = {.integer = codes}, b = {.integer = x};
  EACH(64) l.i[i / 4] += a.codes[i] * b.bytes[i];
  return l.integer;
}
static inline __m512i c_dpwssd_epi32(__m512i sum, __m512i x, __m512i y) {
  Lanes l = {.integer = sum}, a = {.integer = x}, b = {.integer = y};
  EACH(32) l.i[i / 2] += (int16_t)a.halves[i] * (int16_t)b.halves[i];
  return l.integer;
}
static inline __m512i c_set1_epi16(int16_t x) {
  Lanes l;
  EACH(32) l.halves[i] = (uint16_t)x;
  return l.integer;
}
static inline __m512i c_madd_epi16(__m512i x, __m512i y) {
  Lanes l, a = {.integer = x}, b = {.integer = y};
  EACH(16)
  l.i[i] = (int16_t)a.halves[2 * i] * (int16_t)b.halves[2 * i] +
           (int16_t)a.halves[2 * i + 1] * (int16_t)b.halves[2 * i + 1];
  return l.integer;
}
static inline __m512i c_maddubs_epi16(__m512i codes, __m512i x) {
  Lanes l, a = {.integer = codes}, b = {.integer = x};
  EACH(32) {
    int sum = a.codes[2 * i] * b.bytes[2 * i] +
              a.codes[2 * i + 1] * b.bytes[2 * i + 1];
    l.halves[i] = (uint16_t)(sum > 32767 ? 32767 : sum < -32768 ? -32768 : sum);
  }
  return l.integer;
}

#undef EACH
#define _mm512_min_ps c_min_ps
#define _mm512_max_ps c_max_ps
#define _mm512_scalef_ps c_scalef_ps
#define _mm512_max_epi32 c_max_epi32
#define _mm512_and_si512 c_and_si512
#define _mm512_or_si512 c_or_si512
#define _mm512_loadu_ps c_loadu_ps
#define _mm512_storeu_ps c_storeu_ps
#define _mm512_loadu_si512 c_loadu_si512
#define _mm512_storeu_si512 c_storeu_si512
#define _mm512_set1_ps c_set1_ps
#define _mm512_set1_epi32 c_set1_epi32
#define _mm512_setr_ps(...)                                                    \
  c_loadu_ps((const float[16]) { __VA_ARGS__ })
#define _mm512_fmadd_ps c_fmadd_ps
#define _mm512_reduce_add_ps c_reduce_add_ps
#define _mm512_reduce_max_ps c_reduce_max_ps
#define _mm512_reduce_add_epi32 c_reduce_add_epi32
#define _mm512_reduce_max_epi32 c_reduce_max_epi32
#define _mm512_cvtepi32_ps c_cvtepi32_ps
#define _mm512_cvtps_epi32 c_cvtps_epi32
#undef _mm512_roundscale_ps
#define _mm512_roundscale_ps c_roundscale_ps
#define _mm512_castsi512_ps c_castsi512_ps
#define _mm512_slli_epi32 c_slli_epi32
#define _mm512_srli_epi32 c_srli_epi32
#define _mm512_cvtepu16_epi32 c_cvtepu16_epi32
#define _mm512_cvtph_ps c_cvtph_ps
#define _mm512_cvtepi32_epi8 c_cvtepi32_epi8
#define _mm512_cvtepi32_epi16 c_cvtepi32_epi16
#define _mm512_permutexvar_ps c_permutexvar_ps
#define _mm512_cvtneps_pbh c_cvtneps_pbh
#define _mm512_cvtne2ps_pbh c_cvtne2ps_pbh
#define _mm512_dpbf16_ps c_dpbf16_ps
#define _mm512_dpbusd_epi32 c_dpbusd_epi32
#define _mm512_dpwssd_epi32 c_dpwssd_epi32
#define _mm512_set1_epi16 c_set1_epi16
#define _mm512_madd_epi16 c_madd_epi16
#define _mm512_maddubs_epi16 c_maddubs_epi16
