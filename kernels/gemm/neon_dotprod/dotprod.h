// Matrix products with sdot on four columns at once: each 32-bit lane is a column, and the quad of activations that
// meets its four bytes is taken from a lane of a vector.
#pragma once

#include "gemm/neon/unpack.h"
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

// Signed levels as [half][quad][8 columns][4].
template <class Levels>
void unpack_halves(size_t blocks, const uint8_t* codes, uint8_t* bytes) {
  const size_t half_bytes = blocks * kUnpackedBlock / 2;
  for (; blocks > 0; blocks--, codes += block_bytes(Levels::kBits), bytes += kUnpackedBlock / 2) {
    Levels::of_block(codes, [&](size_t quad, size_t j, int8x16_t levels) {
      vst1q_u8(bytes + j / 2 * half_bytes + quad * kRow / 2 + 16 * (j % 2), vreinterpretq_u8_s8(levels));
    });
  }
}

}  // namespace
}  // namespace edgekit::gemm
