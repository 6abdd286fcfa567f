// Matrix products for ARMv8.0, which has no sdot: smlal multiplies bytes into 16-bit sums, two columns of four k a
// vector, and sadalp folds them into 32 bits before they can overflow.
#pragma once

#include "gemm/neon/vectors.h"
#include "gemm/unpacking.h"

namespace edgekit::gemm {

namespace neon {
// The product for many rows, for levels of magnitude up to 8: 32 quads of them fit in 16 bits (32 * 8 * 127 = 32512).
void prefill_narrow(const edgekit_gemm_args& args, const Unpacking& unpacking);
// The same for levels up to 127: 2 quads fit (2 * 127 * 127 = 32258).
void prefill_wide(const edgekit_gemm_args& args, const Unpacking& unpacking);
}  // namespace neon

namespace {

// 16-bit sums of 16 columns: v[i] holds columns 2i and 2i + 1, four lanes each.
struct Narrow {
  int16x8_t v[2 * kFours];
};
// 32-bit sums: v[i] holds columns 2i and 2i + 1, two lanes each.
struct Wide {
  int32x4_t v[2 * kFours];
};

template <int kLane>
inline int8x16_t repeat_quad(int8x16_t a) {
  return vreinterpretq_s8_s32(vdupq_laneq_s32(vreinterpretq_s32_s8(a), kLane));
}

// Adds codes of columns 4j to 4j + 3 times a quad.
inline void multiply(Narrow* sums, size_t j, int8x16_t codes, int8x16_t quad) {
  sums->v[2 * j] = vmlal_s8(sums->v[2 * j], vget_low_s8(codes), vget_low_s8(quad));
  sums->v[2 * j + 1] = vmlal_high_s8(sums->v[2 * j + 1], codes, quad);
}

inline void widen(Wide* wide, const Narrow& narrow) {
  for (size_t i = 0; i < 2 * kFours; i++) wide->v[i] = vpadalq_s16(wide->v[i], narrow.v[i]);
}

// Sums that start with the bias in the first of each two lanes.
inline Wide wide_from(int32_t bias) {
  Wide wide;
  for (int32x4_t& v : wide.v) v = vreinterpretq_s32_u64(vdupq_n_u64(static_cast<uint32_t>(bias)));
  return wide;
}

inline Columns columns_of(const Wide& wide, int32_t bias) {
  Columns columns;
  for (size_t j = 0; j < kFours; j++) {
    columns.v[j] = vaddq_s32(vpaddq_s32(wide.v[2 * j], wide.v[2 * j + 1]), vdupq_n_s32(bias));
  }
  return columns;
}

}  // namespace
}  // namespace edgekit::gemm
