// Products with float weights: c = fma(a, w, c) with k rising, so a column is one chain; several tiles or rows at once
// hide its latency.
#pragma once

#include "gemm/neon/vectors.h"

namespace edgekit::gemm {
namespace {

inline float32x4_t load_floats(const float* w) { return vld1q_f32(w); }
inline float32x4_t load_floats(const uint16_t* w) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(w))); }

// kR rows of a and kT tiles of weights, one after the other.
template <size_t kR, size_t kT, class Weight>
inline void multiply_floats(const edgekit_gemm_args& args, const float* a, const Weight* w, float* c) {
  float32x4_t sum[kR][kT][kFours];
  for (size_t r = 0; r < kR; r++) {
    for (size_t t = 0; t < kT; t++) {
      for (size_t j = 0; j < kFours; j++) sum[r][t][j] = vdupq_n_f32(0);
    }
  }
  for (size_t p = 0; p < args.k; p++, w += kTile) {
    for (size_t t = 0; t < kT; t++) {
      for (size_t j = 0; j < kFours; j++) {
        const float32x4_t weights = load_floats(w + t * args.k * kTile + 4 * j);
        for (size_t r = 0; r < kR; r++) sum[r][t][j] = vfmaq_n_f32(sum[r][t][j], weights, a[r * args.a_stride + p]);
      }
    }
  }
  for (size_t r = 0; r < kR; r++) {
    for (size_t t = 0; t < kT; t++) {
      for (size_t j = 0; j < kFours; j++) vst1q_f32(c + r * args.c_stride + t * kTile + 4 * j, sum[r][t][j]);
    }
  }
}

// Calls multiply_floats for a number of rows known only now, at most kR.
template <size_t kR, size_t kT, class Weight>
inline void multiply_piece(const edgekit_gemm_args& args, size_t rows, const float* a, const Weight* w, float* c) {
  if (rows == kR) {
    multiply_floats<kR, kT>(args, a, w, c);
  } else if constexpr (kR > 1) {
    multiply_piece<kR - 1, kT>(args, rows, a, w, c);
  }
}

// All rows of kT tiles, in pieces of nearly equal size.
template <size_t kR, size_t kT, class Weight>
inline void multiply_float_rows(const edgekit_gemm_args& args, const Weight* w, float* c) {
  const float* a = static_cast<const float*>(args.a);
  size_t left = args.m;
  for (size_t pieces = (left + kR - 1) / kR; pieces > 0; pieces--) {
    const size_t rows = (left + pieces - 1) / pieces;
    multiply_piece<kR, kT>(args, rows, a, w, c);
    a += rows * args.a_stride;
    c += rows * args.c_stride;
    left -= rows;
  }
}

// kT tiles at a time, then one.
template <size_t kR, size_t kT, class Weight>
inline void multiply_float_tiles(const edgekit_gemm_args& args) {
  const size_t tile_weights = args.k * kTile;
  const Weight* w = reinterpret_cast<const Weight*>(args.codes) + args.tile_begin * tile_weights;
  float* c = args.c;
  size_t tiles = args.tile_end - args.tile_begin;
  for (; tiles >= kT; tiles -= kT, w += kT * tile_weights, c += kT * kTile) multiply_float_rows<kR, kT>(args, w, c);
  for (; tiles > 0; tiles--, w += tile_weights, c += kTile) multiply_float_rows<kR, 1>(args, w, c);
}

}  // namespace
}  // namespace edgekit::gemm
