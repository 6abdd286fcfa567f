// The product for many rows, as every ISA does it: a few tiles are unpacked to bytes for some hundred k, on the stack,
// and meet all rows of activations before the next.
#pragma once

#include "gemm/layout.h"
#include "gemm/unpacking.h"

namespace edgekit::gemm {
namespace {

constexpr size_t kDepth = 512;  // a multiple of every group; 8 KiB of bytes a tile stay in the first cache
constexpr size_t kLeastGroup = 32;
constexpr size_t kMostGroups = kDepth / kLeastGroup;

// A stretch of k, at most kDepth long or what multiply_tiles is told, and where its operands begin.
struct Stretch {
  size_t depth;
  size_t group;
  const int8_t* a;
  size_t a_stride;
  const float* a_scale;
  const int32_t* a_sum;
  size_t groups;         // in a whole row: the stride of a_scale and a_sum
  const uint8_t* bytes;  // as many from tile to tile as the longest stretch takes
  const float* w_scale;  // as Scales unpacks them; those of the longest stretch from tile to tile
  int32_t bias;
  bool first;  // c starts at 0
  float* c;
  size_t c_stride;
};

using MultiplyStretch = void (*)(const Stretch&);

// All rows, in pieces of nearly equal size: with kRows = 7, 8 rows are 4 and 4, not 7 and 1.
template <size_t kRows>
inline void multiply_all_rows(Stretch s, size_t m, const MultiplyStretch* multiply_rows) {
  for (size_t pieces = (m + kRows - 1) / kRows; pieces > 0; pieces--) {
    const size_t rows = (m + pieces - 1) / pieces;
    multiply_rows[rows - 1](s);
    s.a += rows * s.a_stride;
    s.a_scale += rows * s.groups;
    s.a_sum += rows * s.groups;
    s.c += rows * s.c_stride;
    m -= rows;
  }
}

// How the scales of a group become the floats that a loop multiplies; here one a column, in order.
struct ScaleOfColumn {
  static constexpr size_t kFloats = kTile;
  static void unpack(const uint16_t* scales, float factor, float* floats) {
    for (size_t i = 0; i < kTile; i++) floats[i] = factor * from_bf16(scales[i]);
  }
};

// kMultiply[t - 1][r - 1] multiplies r rows with t tiles, for stretches of up to kLongest k.
template <size_t kLongest = kDepth, class Scales = ScaleOfColumn, size_t kTiles, size_t kRows>
inline void multiply_tiles(const edgekit_gemm_args& args, const Unpacking& unpacking,
                           const MultiplyStretch (&multiply)[kTiles][kRows]) {
  alignas(64) uint8_t bytes[kTiles][kLongest * kTile];
  alignas(64) float w_scale[kTiles][kLongest / kLeastGroup * Scales::kFloats];
  const size_t groups = group_count(args.k, args.group);
  const size_t tile_bytes = args.k / kBlock * unpacking.block_bytes;
  for (size_t tile = args.tile_begin; tile < args.tile_end; tile += kTiles) {
    const size_t tiles = smaller(kTiles, args.tile_end - tile);
    for (size_t p = 0; p < args.k; p += kLongest) {
      const size_t depth = smaller(kLongest, args.k - p), g = p / args.group;
      for (size_t t = 0; t < tiles; t++) {
        const uint8_t* codes = args.codes + (tile + t) * tile_bytes + p / kBlock * unpacking.block_bytes;
        unpacking.unpack(depth / kBlock, codes, bytes[t]);
        const uint16_t* scales = args.scales + ((tile + t) * groups + g) * kTile;
        for (size_t i = 0; i < group_count(depth, args.group); i++) {
          Scales::unpack(scales + i * kTile, unpacking.factor, w_scale[t] + i * Scales::kFloats);
        }
      }
      const Stretch stretch = {.depth = depth,
                               .group = args.group,
                               .a = static_cast<const int8_t*>(args.a) + p,
                               .a_stride = args.a_stride,
                               .a_scale = args.a_scale + g,
                               .a_sum = args.a_sum + g,
                               .groups = groups,
                               .bytes = bytes[0],
                               .w_scale = w_scale[0],
                               .bias = unpacking.bias,
                               .first = p == 0,
                               .c = args.c + (tile - args.tile_begin) * kTile,
                               .c_stride = args.c_stride};
      multiply_all_rows<kRows>(stretch, args.m, multiply[tiles - 1]);
    }
  }
}

}  // namespace
}  // namespace edgekit::gemm
