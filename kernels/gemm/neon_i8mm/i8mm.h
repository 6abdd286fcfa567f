// Matrix products for many rows with smmla: two rows of activations by two columns of weights, eight k at a time.
#pragma once

#include "gemm/neon/unpack.h"
#include "gemm/unpacking.h"

namespace edgekit::gemm {

namespace neon_i8mm {
// `unpacking` is of unpack_pairs.
void prefill(const edgekit_gemm_args& args, const Unpacking& unpacking);
}  // namespace neon_i8mm

namespace {

// Signed levels of two quads, 8 k, side by side: [half][pair of quads][8 columns][8].
template <class Levels>
void unpack_pairs(size_t blocks, const uint8_t* codes, uint8_t* bytes) {
  const size_t half_bytes = blocks * kUnpackedBlock / 2;
  for (; blocks > 0; blocks--, codes += block_bytes(Levels::kBits), bytes += kUnpackedBlock / 2) {
    int32x4_t levels[kQuads][kFours];
    Levels::of_block(codes, [&](size_t quad, size_t j, int8x16_t v) { levels[quad][j] = vreinterpretq_s32_s8(v); });
    for (size_t quad = 0; quad < kQuads; quad += 2) {
      for (size_t j = 0; j < kFours; j++) {
        uint8_t* pair = bytes + j / 2 * half_bytes + quad / 2 * kRow + 32 * (j % 2);
        vst1q_u8(pair, vreinterpretq_u8_s32(vzip1q_s32(levels[quad][j], levels[quad + 1][j])));
        vst1q_u8(pair + 16, vreinterpretq_u8_s32(vzip2q_s32(levels[quad][j], levels[quad + 1][j])));
      }
    }
  }
}

}  // namespace
}  // namespace edgekit::gemm
