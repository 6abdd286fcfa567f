// The product for many rows, as every ISA does it: a few tiles are unpacked to bytes for up to 512 k, on the stack, and
// meet all rows of activations before the next 512 k.
#pragma once

#include "gemm/layout.h"
#include "gemm/unpacking.h"

namespace edgekit::gemm {
namespace {

constexpr size_t kDepth = 512;  // a multiple of every group; 8 KiB of bytes a tile stay in the first cache

// A stretch of k, at most kDepth long, and where its operands begin.
struct Stretch {
  size_t depth;
  size_t group;
  const int8_t* a;
  size_t a_stride;
  const float* a_scale;
  const int32_t* a_sum;
  size_t groups;         // in a whole row: the stride of a_scale and a_sum
  const uint8_t* bytes;  // kDepth * kTile from tile to tile
  const uint16_t* scales;
  size_t scale_stride;  // from tile to tile
  int32_t bias;
  float factor;
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

// kMultiply[t - 1][r - 1] multiplies r rows with t tiles.
template <size_t kTiles, size_t kRows>
inline void multiply_tiles(const edgekit_gemm_args& args, const Unpacking& unpacking,
                           const MultiplyStretch (&multiply)[kTiles][kRows]) {
  alignas(64) uint8_t bytes[kTiles][kDepth * kTile];
  const size_t groups = group_count(args.k, args.group);
  const size_t tile_bytes = args.k / kBlock * unpacking.block_bytes;
  for (size_t tile = args.tile_begin; tile < args.tile_end; tile += kTiles) {
    const size_t tiles = smaller(kTiles, args.tile_end - tile);
    for (size_t p = 0; p < args.k; p += kDepth) {
      const size_t depth = smaller(kDepth, args.k - p);
      for (size_t t = 0; t < tiles; t++) {
        const uint8_t* codes = args.codes + (tile + t) * tile_bytes + p / kBlock * unpacking.block_bytes;
        unpacking.unpack(depth / kBlock, codes, bytes[t]);
      }
      const size_t g = p / args.group;
      const Stretch stretch = {.depth = depth,
                               .group = args.group,
                               .a = static_cast<const int8_t*>(args.a) + p,
                               .a_stride = args.a_stride,
                               .a_scale = args.a_scale + g,
                               .a_sum = args.a_sum + g,
                               .groups = groups,
                               .bytes = bytes[0],
                               .scales = args.scales + (tile * groups + g) * kTile,
                               .scale_stride = groups * kTile,
                               .bias = unpacking.bias,
                               .factor = unpacking.factor,
                               .first = p == 0,
                               .c = args.c + (tile - args.tile_begin) * kTile,
                               .c_stride = args.c_stride};
      multiply_all_rows<kRows>(stretch, args.m, multiply[tiles - 1]);
    }
  }
}

}  // namespace
}  // namespace edgekit::gemm
