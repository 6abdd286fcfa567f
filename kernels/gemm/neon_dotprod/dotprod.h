// Matrix products with sdot on four columns at once: each 32-bit lane is a column, and the quad of activations that
// meets its four bytes is taken from a lane of a vector.
#pragma once

#include "gemm/neon/vectors.h"
#include "gemm/unpacking.h"

namespace edgekit::gemm {

namespace neon_dotprod {
// The product for many rows; `unpacking` gives signed bytes.
void prefill(const edgekit_gemm_args& args, const Unpacking& unpacking);
}  // namespace neon_dotprod

namespace {

// sum += codes of 4 columns times quad kLane of a.
template <int kLane>
inline int32x4_t dot(int32x4_t sum, int8x16_t codes, int8x16_t a) {
  return vdotq_laneq_s32(sum, codes, a, kLane);
}

}  // namespace
}  // namespace edgekit::gemm
