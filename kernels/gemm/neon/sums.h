// What the tiles of sdot and smmla share: long stretches, and sums that start from memory.
#pragma once

#include "gemm/neon/vectors.h"
#include "gemm/prefill.h"

namespace edgekit::gemm {
namespace {

// Results stay in registers for a whole stretch, so a long one is worth two times 16 KiB of bytes.
constexpr size_t kLongDepth = 1024;
constexpr size_t kMostLongGroups = kLongDepth / kLeastGroup;
constexpr size_t kHalf = kTile / 2;  // columns that are multiplied at once

// Volatile, so that it comes through a load pipe, which has time to spare, and not from a register.
inline int32x4_t start_of_sum() {
  static const volatile int32x4_t start = {kFloatStart, kFloatStart, kFloatStart, kFloatStart};
  return start;
}

}  // namespace
}  // namespace edgekit::gemm
