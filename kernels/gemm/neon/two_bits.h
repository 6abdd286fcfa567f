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

// Sums of code * a.
inline Columns two_bit_sums(size_t blocks, const uint8_t* codes, const int8_t* a) {
  Narrow sums = {};
  int32x4_t biased = vdupq_n_s32(0);
  const int8x16_t mask = quad_mask(1, 1, 1, 0);
  for (; blocks > 0; blocks--, codes += block_bytes(2), a += kBlock) {
    prefetch_block(codes, block_bytes(2));
    const int8x16_t a0 = vld1q_s8(a), a1 = vld1q_s8(a + 16);
    biased = add_masked(add_masked(biased, a0, mask), a1, mask);
    add_fields(&sums, codes, a0);
    add_fields(&sums, codes + kRow, a1);
  }
  Wide wide = {};
  widen(&wide, sums);
  return columns_of(wide, -2 * vaddvq_s32(biased));
}

}  // namespace
}  // namespace edgekit::gemm
