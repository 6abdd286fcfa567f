// What the kernels of every NEON ISA share. A tile's 16 columns are four vectors of four.
#pragma once

#include <arm_neon.h>

#include "gemm/layout.h"

namespace edgekit::gemm {
namespace {

constexpr size_t kFours = 4;
constexpr size_t kAhead = 1024;  // bytes of codes that decode asks for ahead of their use

// What a sum can start as, so that it becomes a float by a subtraction: the bits of the float 3 * 2^22, whose unit is
// 1. Read as a float it is 3 * 2^22 + sum exactly while |sum| < 2^22. From the Cortex-A76 on a conversion has half a
// pipe, a subtraction two; before, they are as fast.
constexpr int32_t kFloatStart = 0x4b400000;
static_assert(128 * 128 * 128 < 1 << 22, "the products of a group of bytes");

inline float32x4_t float_of_sum(int32x4_t sum, float32x4_t start) {
  return vsubq_f32(vreinterpretq_f32_s32(sum), start);
}

struct Columns {
  int32x4_t v[kFours];
};

inline Columns all_columns(int32_t value) {
  const int32x4_t v = vdupq_n_s32(value);
  return {{v, v, v, v}};
}

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

// What the biases of stored codes add to the sums of a group, taken negative. Sums::kBias: of each quad of a block,
// at most 8 in magnitude, so that the products of a block fit in 16 bits (4 * 8 * 127).
template <class Sums>
inline int32_t bias_of_group(size_t blocks, const int8_t* a) {
  int8_t bytes[kBlock];
  for (size_t i = 0; i < kBlock; i++) bytes[i] = Sums::kBias[i / 4];
  const int8x16_t bias0 = vld1q_s8(bytes), bias1 = vld1q_s8(bytes + 16);
  int32x4_t sum = vdupq_n_s32(0);
  for (; blocks > 0; blocks--, a += kBlock) {
    const int8x16_t a0 = vld1q_s8(a), a1 = vld1q_s8(a + 16);
    int16x8_t narrow = vmull_s8(vget_low_s8(a0), vget_low_s8(bias0));
    narrow = vmlal_high_s8(narrow, a0, bias0);
    narrow = vmlal_s8(narrow, vget_low_s8(a1), vget_low_s8(bias1));
    sum = vpadalq_s16(sum, vmlal_high_s8(narrow, a1, bias1));
  }
  return vaddvq_s32(sum);
}

// Of the sums of level * a for q2 and t2, what decode() asks. A level of t2 is the code, one of q2 is 2 * code + 1:
// kDoubled.
template <bool kDoubled>
struct TwoBitCodes {
  static constexpr size_t kBits = 2;
  static constexpr bool kHalved = kDoubled;
  static constexpr int8_t kLow = kDoubled ? -3 : -2, kTop = kDoubled ? 1 : 0;
  static constexpr int8_t kBias[kQuads] = {kLow, kLow, kLow, kTop, kLow, kLow, kLow, kTop};
};

constexpr size_t kStretchGroups = 256;

// The product for one row at a time. Sums::of_group gives the sums of level * a over the blocks of a group, when told
// what to add: the biases, and kStart (0 or kFloatStart). There is a block at least. The biases are the same for all
// tiles, so they are computed once for a stretch of the row. Sums::kHalved says that a level is half a scale.
template <class Sums, int32_t kStart = 0>
inline void decode(const edgekit_gemm_args& args) {
  const size_t groups = group_count(args.k, args.group);
  const size_t tile_bytes = args.k / kBlock * block_bytes(Sums::kBits);
  const auto blocks_of = [&](size_t g) { return smaller(args.group, args.k - g * args.group) / kBlock; };
  for (size_t i = 0; i < args.m; i++) {
    const float* a_scale = args.a_scale + i * groups;
    for (size_t first = 0; first < groups; first += kStretchGroups) {
      const size_t last = smaller(groups, first + kStretchGroups);
      const int8_t* row = static_cast<const int8_t*>(args.a) + i * args.a_stride + first * args.group;
      int32_t biases[kStretchGroups];
      float factors[kStretchGroups];
      for (size_t g = first; g < last; g++) {
        biases[g - first] = kStart + bias_of_group<Sums>(blocks_of(g), row + (g - first) * args.group);
        // Half of a_scale, which is no subnormal, is exact, and so is half of w_scale: the product is the same.
        factors[g - first] = Sums::kHalved ? 0.5f * a_scale[g] : a_scale[g];
      }
      for (size_t tile = args.tile_begin; tile < args.tile_end; tile++) {
        const uint8_t* codes =
            args.codes + tile * tile_bytes + first * args.group / kBlock * block_bytes(Sums::kBits);
        const uint16_t* scales = args.scales + (tile * groups + first) * kTile;
        const int8_t* a = row;
        float* result = args.c + i * args.c_stride + (tile - args.tile_begin) * kTile;
        const float32x4_t start = vdupq_n_f32(__builtin_bit_cast(float, kStart));
        float32x4_t c[kFours];
        for (size_t j = 0; j < kFours; j++) c[j] = first == 0 ? vdupq_n_f32(0) : vld1q_f32(result + 4 * j);
        for (size_t g = first; g < last; g++, scales += kTile) {
          const size_t blocks = blocks_of(g);
          const Columns sums = Sums::of_group(blocks, codes, a, biases[g - first]);
          codes += blocks * block_bytes(Sums::kBits);
          a += blocks * kBlock;
          float32x4_t w_scale[kFours];
          load_scales(scales, w_scale);
          for (size_t j = 0; j < kFours; j++) {
            const float32x4_t sum = kStart == 0 ? vcvtq_f32_s32(sums.v[j]) : float_of_sum(sums.v[j], start);
            c[j] = vfmaq_f32(c[j], sum, vmulq_n_f32(w_scale[j], factors[g - first]));
          }
        }
        for (size_t j = 0; j < kFours; j++) vst1q_f32(result + 4 * j, c[j]);
      }
    }
  }
}

}  // namespace
}  // namespace edgekit::gemm
