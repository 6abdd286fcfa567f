// Products with float weights: c = fma(a, w, c) with k rising, so a column is one chain; several tiles and rows at once
// hide its latency.
#pragma once

#include <immintrin.h>

#include "gemm/layout.h"

namespace edgekit::gemm {
namespace {

inline __m512 load_floats(const float* w) { return _mm512_loadu_ps(w); }
inline __m512 load_floats(const uint16_t* w) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(w)));
}

// Rows [0, kR) of a and tiles [0, kT) of weights. `tile_stride` in weights.
template <size_t kR, size_t kT, class Weight>
inline void multiply_floats(size_t k, const float* a, size_t a_stride, const Weight* w, size_t tile_stride, float* c,
                            size_t c_stride) {
  __m512 sum[kR][kT] = {};
  for (size_t p = 0; p < k; p++, w += kTile) {
    __m512 weights[kT];
    for (size_t t = 0; t < kT; t++) weights[t] = load_floats(w + t * tile_stride);
    for (size_t r = 0; r < kR; r++) {
      const __m512 x = _mm512_set1_ps(a[r * a_stride + p]);
      for (size_t t = 0; t < kT; t++) sum[r][t] = _mm512_fmadd_ps(x, weights[t], sum[r][t]);
    }
  }
  for (size_t r = 0; r < kR; r++) {
    for (size_t t = 0; t < kT; t++) _mm512_storeu_ps(c + r * c_stride + t * kTile, sum[r][t]);
  }
}

// Calls multiply_floats for a number of rows known only now, at most kR.
template <size_t kR, size_t kT, class Weight>
inline void multiply_piece(size_t rows, size_t k, const float* a, size_t a_stride, const Weight* w, float* c,
                           size_t c_stride) {
  if (rows == kR) {
    multiply_floats<kR, kT>(k, a, a_stride, w, k * kTile, c, c_stride);
  } else if constexpr (kR > 1) {
    multiply_piece<kR - 1, kT>(rows, k, a, a_stride, w, c, c_stride);
  }
}

// All rows of kT tiles, in pieces of nearly equal size.
template <size_t kR, size_t kT, class Weight>
inline void multiply_float_rows(size_t m, size_t k, const float* a, size_t a_stride, const Weight* w, float* c,
                                size_t c_stride) {
  for (size_t pieces = (m + kR - 1) / kR; pieces > 0; pieces--) {
    const size_t rows = (m + pieces - 1) / pieces;
    multiply_piece<kR, kT>(rows, k, a, a_stride, w, c, c_stride);
    a += rows * a_stride;
    c += rows * c_stride;
    m -= rows;
  }
}

// kT tiles at a time, then one.
template <size_t kR, size_t kT, class Weight>
inline void multiply_float_tiles(const edgekit_gemm_args& args) {
  const float* a = static_cast<const float*>(args.a);
  const Weight* w = reinterpret_cast<const Weight*>(args.codes) + args.tile_begin * args.k * kTile;
  float* c = args.c;
  size_t tiles = args.tile_end - args.tile_begin;
  for (; tiles >= kT; tiles -= kT, w += kT * args.k * kTile, c += kT * kTile) {
    multiply_float_rows<kR, kT>(args.m, args.k, a, args.a_stride, w, c, args.c_stride);
  }
  for (; tiles > 0; tiles--, w += args.k * kTile, c += kTile) {
    multiply_float_rows<kR, 1>(args.m, args.k, a, args.a_stride, w, c, args.c_stride);
  }
}

}  // namespace
}  // namespace edgekit::gemm
