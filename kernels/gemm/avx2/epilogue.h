// The end of a group in prefill: integer sums of a register tile become floats and join c, which lives in memory.
#pragma once

#include "gemm/avx2/vectors.h"
#include "gemm/prefill.h"

namespace edgekit::gemm {
namespace {

// `fresh`: c starts at 0.
template <size_t kR>
inline void add_group(const Stretch& s, size_t g, bool fresh, const __m256i (&sum)[kR][kHalves]) {
#pragma GCC unroll 2
  for (size_t h = 0; h < kHalves; h++) {
    const __m256 w_scale = _mm256_load_ps(s.w_scale + g * kTile + 8 * h);
#pragma GCC unroll 8
    for (size_t r = 0; r < kR; r++) {
      const __m256i exact = _mm256_sub_epi32(sum[r][h], _mm256_set1_epi32(s.bias * s.a_sum[r * s.groups + g]));
      const __m256 scale = _mm256_mul_ps(_mm256_set1_ps(s.a_scale[r * s.groups + g]), w_scale);
      float* c = s.c + r * s.c_stride + 8 * h;
      const __m256 before = fresh ? _mm256_setzero_ps() : _mm256_loadu_ps(c);
      _mm256_storeu_ps(c, _mm256_fmadd_ps(_mm256_cvtepi32_ps(exact), scale, before));
    }
  }
}

}  // namespace
}  // namespace edgekit::gemm
