// Matrix products in portable C++: unpacks a group of a tile once and multiplies it with every row.
#pragma once

#include "gemm/blocks.h"
#include "gemm/layout.h"

namespace edgekit::gemm {
namespace {

constexpr size_t kLargestGroup = 128;

// sum[column] += products of `quads` quads of unpacked codes with the activations a.
inline void multiply_quads(size_t quads, const int8_t* codes, const int8_t* a, int32_t* sum) {
  for (size_t quad = 0; quad < quads; quad++, codes += kRow, a += 4) {
    for (size_t column = 0; column < kTile; column++) {
      const int8_t* w = codes + column * 4;
      sum[column] += w[0] * a[0] + w[1] * a[1] + w[2] * a[2] + w[3] * a[3];
    }
  }
}

template <class Format>
void multiply_tile(const edgekit_gemm_args& args, const uint8_t* codes, const uint16_t* scales, float* c) {
  const int8_t* a = static_cast<const int8_t*>(args.a);
  const size_t groups = group_count(args.k, args.group);
  int8_t unpacked[kLargestGroup / 4 * kRow];
  for (size_t i = 0; i < args.m; i++) {
    for (size_t column = 0; column < kTile; column++) c[i * args.c_stride + column] = 0;
  }
  for (size_t g = 0; g < groups; g++) {
    const size_t depth = smaller(args.group, args.k - g * args.group);
    for (size_t p = 0; p < depth; p += kBlock) {
      Format::unpack(codes, unpacked + p / 4 * kRow);
      codes += block_bytes(Format::kBits);
    }
    for (size_t i = 0; i < args.m; i++) {
      int32_t sum[kTile] = {};
      multiply_quads(depth / 4, unpacked, a + i * args.a_stride + g * args.group, sum);
      const float a_scale = args.a_scale[i * groups + g];
      for (size_t column = 0; column < kTile; column++) {
        float w_scale = from_bf16(scales[g * kTile + column]);
        if (Format::kDoubled) {
          sum[column] = 2 * sum[column] + args.a_sum[i * groups + g];
          w_scale *= 0.5f;
        }
        float* result = c + i * args.c_stride + column;
        *result = __builtin_fmaf(static_cast<float>(sum[column]), a_scale * w_scale, *result);
      }
    }
  }
}

template <class Format>
void multiply(const edgekit_gemm_args* args) {
  const size_t blocks = args->k / kBlock;
  const size_t groups = group_count(args->k, args->group);
  for (size_t tile = args->tile_begin; tile < args->tile_end; tile++) {
    multiply_tile<Format>(*args, args->codes + tile * blocks * block_bytes(Format::kBits),
                          args->scales + tile * groups * kTile, args->c + (tile - args->tile_begin) * kTile);
  }
}

template <class Weight, float (*kValue)(Weight)>
void multiply_floats(const edgekit_gemm_args* args) {
  const float* a = static_cast<const float*>(args->a);
  const Weight* weights = reinterpret_cast<const Weight*>(args->codes);
  for (size_t tile = args->tile_begin; tile < args->tile_end; tile++) {
    for (size_t i = 0; i < args->m; i++) {
      float sum[kTile] = {};
      const Weight* w = weights + tile * args->k * kTile;
      for (size_t p = 0; p < args->k; p++, w += kTile) {
        const float x = a[i * args->a_stride + p];
        for (size_t column = 0; column < kTile; column++) {
          sum[column] = __builtin_fmaf(x, kValue(w[column]), sum[column]);
        }
      }
      float* c = args->c + i * args->c_stride + (tile - args->tile_begin) * kTile;
      for (size_t column = 0; column < kTile; column++) c[column] = sum[column];
    }
  }
}

}  // namespace
}  // namespace edgekit::gemm
