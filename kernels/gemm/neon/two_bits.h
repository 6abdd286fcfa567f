// What q2 and t2 share: fields 0 to 2 are code + 2, field 3 is the code. A group of 128 adds up to 32 * 3 * 127 = 12192
// to a 16-bit sum, so it fits whole.
#pragma once

#include "gemm/neon/long_multiply.h"

namespace edgekit::gemm {
namespace {

inline void add_fields(Narrow* sums, const uint8_t* codes, int8x16_t a) {
  const int8x16_t quads[4] = {repeat_quad<0>(a), repeat_quad<1>(a), repeat_quad<2>(a), repeat_quad<3>(a)};
  for (size_t j = 0; j < kFours; j++) {
    const uint8x16_t row = load_codes(codes + 16 * j);
    multiply(sums, j, field(row, 3), quads[0]);
    multiply(sums, j, field(vshrq_n_u8(row, 2), 3), quads[1]);
    multiply(sums, j, field(vshrq_n_u8(row, 4), 3), quads[2]);
    multiply(sums, j, vshrq_n_s8(as_signed(row), 6), quads[3]);
  }
}

template <bool kDoubled>
struct TwoBitSums : TwoBitCodes<kDoubled> {
  using TwoBitCodes<kDoubled>::kBits;

  static Columns of_group(size_t blocks, const uint8_t* codes, const int8_t* a, int32_t bias) {
    Narrow narrow = {};
    do {
      prefetch_block(codes, block_bytes(kBits));
      add_fields(&narrow, codes, vld1q_s8(a));
      add_fields(&narrow, codes + kRow, vld1q_s8(a + 16));
      codes += block_bytes(kBits);
      a += kBlock;
    } while (--blocks > 0);
    Columns sums;
    for (size_t j = 0; j < kFours; j++) {
      const int16x8_t pairs = vpaddq_s16(narrow.v[2 * j], narrow.v[2 * j + 1]);  // 2 * 12192 fit, too
      sums.v[j] = vpadalq_s16(vdupq_n_s32(bias), pairs);
      if (kDoubled) sums.v[j] = vpadalq_s16(sums.v[j], pairs);
    }
    return sums;
  }
};

}  // namespace
}  // namespace edgekit::gemm
