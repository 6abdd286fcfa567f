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

template <bool kDoubled>
struct TwoBitSums : TwoBitCodes<kDoubled> {
  using TwoBitCodes<kDoubled>::kBits;

  static Columns of_group(size_t blocks, const uint8_t* codes, const int8_t* a, int32_t bias) {
    Columns planes[4] = {};
    planes[0] = all_columns(kDoubled ? bias >> 1 : bias);
    if (kDoubled) planes[1] = all_columns(2 * (bias & 1));
    do {
      prefetch_block(codes, block_bytes(kBits));
      add_planes<0>(planes, codes, vld1q_s8(a));
      add_planes<1>(planes, codes, vld1q_s8(a + 16));
      codes += block_bytes(kBits);
      a += kBlock;
    } while (--blocks > 0);
    Columns sums;
    for (size_t j = 0; j < kFours; j++) {
      const int32x4_t high = vsraq_n_s32(planes[2].v[j], planes[3].v[j], 2);
      if (kDoubled) {
        const int32x4_t twice = vaddq_s32(planes[0].v[j], planes[0].v[j]);
        sums.v[j] = vsraq_n_s32(vsraq_n_s32(twice, planes[1].v[j], 1), high, 3);
      } else {
        sums.v[j] = vsraq_n_s32(vsraq_n_s32(planes[0].v[j], planes[1].v[j], 2), high, 4);
      }
    }
    return sums;
  }
};

}  // namespace
}  // namespace edgekit::gemm
