// What q2 and t2 share: the same fields, masked where they are. Planes 0 to 2 are 4^p * (code + 2), plane 3 64 * code.
#pragma once

#include "gemm/neon_dotprod/dotprod.h"

namespace edgekit::gemm {
namespace {

template <int kR>
inline void add_planes(Columns (&planes)[4], const uint8_t* codes, int8x16_t a) {
  for (size_t j = 0; j < kFours; j++) {
    const uint8x16_t row = load_codes(codes + kR * kRow + 16 * j);
    planes[0].v[j] = dot<0>(planes[0].v[j], field(row, 0x03), a);
    planes[1].v[j] = dot<1>(planes[1].v[j], field(row, 0x0c), a);
    planes[2].v[j] = dot<2>(planes[2].v[j], field(row, 0x30), a);
    planes[3].v[j] = dot<3>(planes[3].v[j], field(row, 0xc0), a);
  }
}

// Sums of code * a.
inline Columns two_bit_sums(size_t blocks, const uint8_t* codes, const int8_t* a) {
  Columns planes[4] = {};
  int32x4_t bias = vdupq_n_s32(0);  // in four parts
  const int8x16_t biases = quad_biases(-2, -2, -2, 0);
  for (; blocks > 0; blocks--, codes += block_bytes(2), a += kBlock) {
    prefetch_block(codes, block_bytes(2));
    const int8x16_t a0 = vld1q_s8(a), a1 = vld1q_s8(a + 16);
    bias = vdotq_s32(vdotq_s32(bias, a0, biases), a1, biases);
    add_planes<0>(planes, codes, a0);
    add_planes<1>(planes, codes, a1);
  }
  const int32x4_t all = vdupq_n_s32(vaddvq_s32(bias));
  Columns sums;
  for (size_t j = 0; j < kFours; j++) {
    const int32x4_t low = vsraq_n_s32(vaddq_s32(planes[0].v[j], all), planes[1].v[j], 2);
    const int32x4_t high = vsraq_n_s32(planes[2].v[j], planes[3].v[j], 2);
    sums.v[j] = vsraq_n_s32(low, high, 4);
  }
  return sums;
}

}  // namespace
}  // namespace edgekit::gemm
