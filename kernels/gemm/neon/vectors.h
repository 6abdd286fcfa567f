// What the kernels of every NEON ISA share. A tile's 16 columns are four vectors of four.
#pragma once

#include <arm_neon.h>

#include "gemm/layout.h"

namespace edgekit::gemm {
namespace {

constexpr size_t kFours = 4;
constexpr size_t kAhead = 1024;  // bytes of codes that decode asks for ahead of their use

struct Columns {
  int32x4_t v[kFours];
};

inline uint8x16_t load_codes(const uint8_t* codes) { return vld1q_u8(codes); }

inline int8x16_t field(uint8x16_t codes, int mask) {
  return vreinterpretq_s8_u8(vandq_u8(codes, vdupq_n_u8(static_cast<uint8_t>(mask))));
}

inline int8x16_t as_signed(uint8x16_t codes) { return vreinterpretq_s8_u8(codes); }

// bf16 is the upper half of a float.
inline void load_scales(const uint16_t* scales, float32x4_t* floats) {
  const uint16x8_t zero = vdupq_n_u16(0);
  for (size_t half = 0; half < 2; half++) {
    const uint16x8_t bits = vld1q_u16(scales + half * 8);
    floats[2 * half] = vreinterpretq_f32_u16(vzip1q_u16(zero, bits));
    floats[2 * half + 1] = vreinterpretq_f32_u16(vzip2q_u16(zero, bits));
  }
}

inline void prefetch_block(const uint8_t* codes, size_t bytes) {
  for (size_t line = 0; line < bytes; line += 64) __builtin_prefetch(codes + kAhead + line, 0, 0);
}

// The product for one row at a time. Sums::of_group gives the sums of level * a over the blocks of a group;
// Sums::kHalved says that a level is half a scale.
template <class Sums>
inline void decode(const edgekit_gemm_args& args) {
  const size_t groups = group_count(args.k, args.group);
  const size_t tile_bytes = args.k / kBlock * block_bytes(Sums::kBits);
  for (size_t i = 0; i < args.m; i++) {
    const float* a_scale = args.a_scale + i * groups;
    const int32_t* a_sum = args.a_sum + i * groups;
    for (size_t tile = args.tile_begin; tile < args.tile_end; tile++) {
      const uint8_t* codes = args.codes + tile * tile_bytes;
      const uint16_t* scales = args.scales + tile * groups * kTile;
      const int8_t* a = static_cast<const int8_t*>(args.a) + i * args.a_stride;
      const int8_t* end = a + args.k;
      float32x4_t c[kFours] = {vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0)};
      for (size_t g = 0; g < groups; g++) {
        const size_t blocks = smaller(args.group, static_cast<size_t>(end - a)) / kBlock;
        const Columns sums = Sums::of_group(blocks, codes, a, a_sum[g]);
        codes += blocks * block_bytes(Sums::kBits);
        a += blocks * kBlock;
        float32x4_t w_scale[kFours];
        load_scales(scales + g * kTile, w_scale);
        for (size_t j = 0; j < kFours; j++) {
          const float32x4_t scale = Sums::kHalved ? vmulq_n_f32(w_scale[j], 0.5f) : w_scale[j];
          c[j] = vfmaq_f32(c[j], vcvtq_f32_s32(sums.v[j]), vmulq_n_f32(scale, a_scale[g]));
        }
      }
      float* result = args.c + i * args.c_stride + (tile - args.tile_begin) * kTile;
      for (size_t j = 0; j < kFours; j++) vst1q_f32(result + 4 * j, c[j]);
    }
  }
}

}  // namespace
}  // namespace edgekit::gemm
