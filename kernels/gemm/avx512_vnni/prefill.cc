// Two tiles are unpacked to bytes for up to 512 k, on the stack, and meet all rows of activations before the next 512 k.
// Inner loop: one broadcast load and two vpdpbusd for each row, quad and pair of tiles; 7 x 2 accumulators.
#include "gemm/avx512_vnni/avx512_vnni.h"

namespace edgekit::gemm {
namespace {

constexpr size_t kRows = 7;
constexpr size_t kTiles = 2;
constexpr size_t kDepth = 512;  // a multiple of every group; 16 KiB of bytes for two tiles stay in the first cache

// A stretch of k, of at most kDepth, and where its operands begin.
struct Stretch {
  size_t depth;
  size_t group;
  const int8_t* a;
  size_t a_stride;
  const float* a_scale;
  const int32_t* a_sum;
  size_t groups;  // of a whole row: the stride of a_scale and a_sum
  const uint8_t* bytes;
  const uint16_t* scales;
  size_t scale_stride;  // from tile to tile
  int32_t bias;
  float factor;
  bool first;  // c starts at 0
  float* c;
  size_t c_stride;
};

template <size_t kR, size_t kT>
void multiply_rows(const Stretch& s) {
  __m512 c[kR][kT];
  for (size_t r = 0; r < kR; r++) {
    for (size_t t = 0; t < kT; t++) {
      c[r][t] = s.first ? _mm512_setzero_ps() : _mm512_loadu_ps(s.c + r * s.c_stride + t * kTile);
    }
  }
  const uint8_t* bytes = s.bytes;
  const int8_t* a = s.a;
  size_t g = 0;
  for (size_t p = 0; p < s.depth; p += s.group, g++) {
    __m512i sum[kR][kT];
    for (size_t r = 0; r < kR; r++) {
      const __m512i start = _mm512_set1_epi32(-s.bias * s.a_sum[r * s.groups + g]);
      for (size_t t = 0; t < kT; t++) sum[r][t] = start;
    }
    const int8_t* end = a + smaller(s.group, s.depth - p);
    for (; a < end; a += 4, bytes += kRow) {
      __m512i w[kT];
      for (size_t t = 0; t < kT; t++) w[t] = load_row(bytes + t * kDepth * kTile);
      for (size_t r = 0; r < kR; r++) {
        const __m512i quad = broadcast_quad(a + r * s.a_stride);
        for (size_t t = 0; t < kT; t++) sum[r][t] = _mm512_dpbusd_epi32(sum[r][t], w[t], quad);
      }
    }
    for (size_t t = 0; t < kT; t++) {
      const __m512 w_scale =
          _mm512_mul_ps(load_scales(s.scales + t * s.scale_stride + g * kTile), _mm512_set1_ps(s.factor));
      for (size_t r = 0; r < kR; r++) {
        const __m512 scale = _mm512_mul_ps(_mm512_set1_ps(s.a_scale[r * s.groups + g]), w_scale);
        c[r][t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[r][t]), scale, c[r][t]);
      }
    }
  }
  for (size_t r = 0; r < kR; r++) {
    for (size_t t = 0; t < kT; t++) _mm512_storeu_ps(s.c + r * s.c_stride + t * kTile, c[r][t]);
  }
}

using Multiply = void (*)(const Stretch&);

constexpr Multiply kMultiply[kTiles][kRows] = {
    {multiply_rows<1, 1>, multiply_rows<2, 1>, multiply_rows<3, 1>, multiply_rows<4, 1>, multiply_rows<5, 1>,
     multiply_rows<6, 1>, multiply_rows<7, 1>},
    {multiply_rows<1, 2>, multiply_rows<2, 2>, multiply_rows<3, 2>, multiply_rows<4, 2>, multiply_rows<5, 2>,
     multiply_rows<6, 2>, multiply_rows<7, 2>}};

// All rows, in pieces of nearly equal size: 8 rows are 4 and 4, not 7 and 1.
void multiply_all_rows(Stretch s, size_t m, size_t tiles) {
  for (size_t pieces = (m + kRows - 1) / kRows; pieces > 0; pieces--) {
    const size_t rows = (m + pieces - 1) / pieces;
    kMultiply[tiles - 1][rows - 1](s);
    s.a += rows * s.a_stride;
    s.a_scale += rows * s.groups;
    s.a_sum += rows * s.groups;
    s.c += rows * s.c_stride;
    m -= rows;
  }
}

}  // namespace

void avx512_vnni::prefill(const edgekit_gemm_args& args, const Unpacking& unpacking) {
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
      multiply_all_rows({.depth = depth,
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
                         .c_stride = args.c_stride},
                        args.m, tiles);
    }
  }
}

}  // namespace edgekit::gemm
