// What the kernels of avx2 and avx_vnni share. A tile's 16 columns are two vectors of eight; a 32-bit lane is a column.
#pragma once

#include <immintrin.h>

#include "gemm/layout.h"

namespace edgekit::gemm {
namespace {

constexpr size_t kHalves = 2;
// Bytes of codes that decode asks for ahead of their use, and past the second cache. On Zen 5, two threads, 1.1 B: 1.08
// (q4) and 1.03 (q2) times the tokens of 2048 bytes into all caches.
constexpr size_t kAhead = 6144;

struct Columns {
  __m256i v[kHalves];
};

inline __m256i load_codes(const uint8_t* codes) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes)); }
inline void store_bytes(uint8_t* to, __m256i bytes) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), bytes); }

inline __m256i broadcast_quad(const int8_t* a) {
  int32_t quad;
  __builtin_memcpy(&quad, a, sizeof quad);
  return _mm256_set1_epi32(quad);
}

inline __m256i bytes_of(int byte) { return _mm256_set1_epi8(static_cast<char>(byte)); }
inline __m256i field(__m256i codes, int mask) { return _mm256_and_si256(codes, bytes_of(mask)); }

// Two's complement with its sign bit flipped is the code plus a bias.
inline __m256i flipped_field(__m256i codes, int mask, int flip) {
  return _mm256_xor_si256(field(codes, mask), bytes_of(flip));
}

inline __m256 load_scales(const uint16_t* scales) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(scales));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}

inline Columns minus(Columns sums, int32_t bias) {
  for (size_t h = 0; h < kHalves; h++) sums.v[h] = _mm256_sub_epi32(sums.v[h], _mm256_set1_epi32(bias));
  return sums;
}

// The product for one row at a time. Sums::of_group gives the sums of level * a over the blocks of a group;
// Sums::kHalved says that a level is half a scale.
template <class Sums>
inline void decode(const edgekit_gemm_args& args) {
  constexpr size_t kBlockBytes = block_bytes(Sums::kBits);
  const size_t groups = group_count(args.k, args.group);
  const size_t tile_bytes = args.k / kBlock * kBlockBytes;
  for (size_t i = 0; i < args.m; i++) {
    const float* a_scale = args.a_scale + i * groups;
    const int32_t* a_sum = args.a_sum + i * groups;
    for (size_t tile = args.tile_begin; tile < args.tile_end; tile++) {
      const uint8_t* codes = args.codes + tile * tile_bytes;
      const uint16_t* scales = args.scales + tile * groups * kTile;
      const int8_t* a = static_cast<const int8_t*>(args.a) + i * args.a_stride;
      const int8_t* end = a + args.k;
      __m256 c[kHalves] = {};
      for (size_t g = 0; g < groups; g++) {
        const size_t blocks = smaller(args.group, static_cast<size_t>(end - a)) / kBlock;
        for (size_t line = 0; line < blocks * kBlockBytes; line += 64) {
          _mm_prefetch(reinterpret_cast<const char*>(codes + kAhead + line), _MM_HINT_NTA);
        }
        const Columns sums = Sums::of_group(blocks, codes, a, a_sum[g]);
        codes += blocks * kBlockBytes;
        a += blocks * kBlock;
        for (size_t h = 0; h < kHalves; h++) {
          __m256 w_scale = load_scales(scales + g * kTile + 8 * h);
          if (Sums::kHalved) w_scale = _mm256_mul_ps(w_scale, _mm256_set1_ps(0.5f));
          const __m256 scale = _mm256_mul_ps(_mm256_set1_ps(a_scale[g]), w_scale);
          c[h] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums.v[h]), scale, c[h]);
        }
      }
      float* result = args.c + i * args.c_stride + (tile - args.tile_begin) * kTile;
      for (size_t h = 0; h < kHalves; h++) _mm256_storeu_ps(result + 8 * h, c[h]);
    }
  }
}

}  // namespace
}  // namespace edgekit::gemm
