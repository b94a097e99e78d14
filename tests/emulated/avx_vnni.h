// What csrc/avx2.h uses of AVX_VNNI, in C for any x86 CPU with AVX2, as Intel's
// guide defines it. To be included first, with -include, by a program that is
// compiled with -DAVX2_VNNI.

#include <immintrin.h>
#include <stdint.h>

static inline __m256i c_dpwssd_avx_epi32(__m256i sum, __m256i x, __m256i y) {
  int32_t sums[8];
  int16_t a[16], b[16];
  __builtin_memcpy(sums, &sum, 32);
  __builtin_memcpy(a, &x, 32);
  __builtin_memcpy(b, &y, 32);
  for (int i = 0; i < 16; i++)
    sums[i / 2] += a[i] * b[i];
  __builtin_memcpy(&sum, sums, 32);
  return sum;
}
#define _mm256_dpwssd_avx_epi32 c_dpwssd_avx_epi32
