// The end of a group in prefill: integer sums of a register tile become floats and join c, which lives in memory.
#pragma once

#include "gemm/neon/vectors.h"
#include "gemm/prefill.h"

namespace edgekit::gemm {
namespace {

// `fresh`: c starts at 0.
template <size_t kR>
inline void add_group(const Stretch& s, size_t g, bool fresh, const int32x4_t (&sum)[kR][kFours]) {
  float32x4_t w_scale[kFours];
  for (size_t j = 0; j < kFours; j++) w_scale[j] = vld1q_f32(s.w_scale + g * kTile + 4 * j);
#pragma GCC unroll 4
  for (size_t r = 0; r < kR; r++) {
    float* c = s.c + r * s.c_stride;
    const float a_scale = s.a_scale[r * s.groups + g];
    for (size_t j = 0; j < kFours; j++) {
      const float32x4_t before = fresh ? vdupq_n_f32(0) : vld1q_f32(c + 4 * j);
      vst1q_f32(c + 4 * j, vfmaq_f32(before, vcvtq_f32_s32(sum[r][j]), vmulq_n_f32(w_scale[j], a_scale)));
    }
  }
}

}  // namespace
}  // namespace edgekit::gemm
