// What the tiles of sdot and smmla share: long stretches, and sums that become floats without a conversion.
#pragma once

#include "gemm/neon/vectors.h"
#include "gemm/prefill.h"

namespace edgekit::gemm {
namespace {

// Results stay in registers for a whole stretch, so a long one is worth two times 16 KiB of bytes.
constexpr size_t kLongDepth = 1024;
constexpr size_t kMostLongGroups = kLongDepth / kLeastGroup;
constexpr size_t kHalf = kTile / 2;  // columns that are multiplied at once

// A sum starts as the bits of the float 3 * 2^22, whose unit is 1: read as a float it is 3 * 2^22 + sum exactly while
// |sum| < 2^22. One subtraction then replaces the conversion, which a Cortex-A76 has half a pipe for.
constexpr int32_t kStart = 0x4b400000;
static_assert(128 * 128 * 128 < 1 << 22, "the products of a group of bytes");

// Volatile, so that it comes through a load pipe, which has time to spare, and not from a register.
inline int32x4_t start_of_sum() {
  static const volatile int32x4_t start = {kStart, kStart, kStart, kStart};
  return start;
}

// `start` is start_of_sum().
inline float32x4_t float_of_sum(int32x4_t sum, int32x4_t start) {
  return vsubq_f32(vreinterpretq_f32_s32(sum), vreinterpretq_f32_s32(start));
}

}  // namespace
}  // namespace edgekit::gemm
