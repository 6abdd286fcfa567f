// Products with float weights: c = fma(a, w, c) with k rising, so a column is one chain; several tiles or rows at once
// hide its latency.
#pragma once

#include "gemm/avx2/vectors.h"

namespace edgekit::gemm {
namespace {

inline __m256 load_floats(const float* w) { return _mm256_loadu_ps(w); }
inline __m256 load_floats(const uint16_t* w) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w)));
}

// kR rows of a and kT tiles of weights, one after the other.
template <size_t kR, size_t kT, class Weight>
inline void multiply_floats(const edgekit_gemm_args& args, const float* a, const Weight* w, float* c) {
  __m256 sum[kR][kT][kHalves] = {};
  for (size_t p = 0; p < args.k; p++, w += kTile) {
    for (size_t t = 0; t < kT; t++) {
      for (size_t h = 0; h < kHalves; h++) {
        const __m256 weights = load_floats(w + t * args.k * kTile + 8 * h);
        for (size_t r = 0; r < kR; r++) {
          sum[r][t][h] = _mm256_fmadd_ps(_mm256_set1_ps(a[r * args.a_stride + p]), weights, sum[r][t][h]);
        }
      }
    }
  }
  for (size_t r = 0; r < kR; r++) {
    for (size_t t = 0; t < kT; t++) {
      for (size_t h = 0; h < kHalves; h++) _mm256_storeu_ps(c + r * args.c_stride + t * kTile + 8 * h, sum[r][t][h]);
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
