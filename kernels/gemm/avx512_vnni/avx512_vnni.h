// Matrix products with vpdpbusd on 16 columns at once: each 32-bit lane is a column, and the quad of activations that
// meets its four bytes is broadcast. The instruction multiplies unsigned by signed bytes, so codes enter with a bias
// that makes them unsigned: what comes out is sum(code * a) + bias * sum(a).
#pragma once

#include <immintrin.h>

#include "gemm/layout.h"
#include "gemm/unpacking.h"

namespace edgekit::gemm {

namespace avx512_vnni {
// The product for many rows; `unpacking` gives unsigned bytes.
void prefill(const edgekit_gemm_args& args, const Unpacking& unpacking);
}  // namespace avx512_vnni

namespace {

// Bytes of codes that decode asks for ahead of their use, and past the second cache: they are not needed again soon.
// On Zen 5, two threads: 5 to 10 % faster than into all caches at the best distance.
constexpr size_t kAhead = 6144;

inline __m512i load_row(const uint8_t* row) { return _mm512_loadu_si512(row); }
inline void store_row(uint8_t* row, __m512i bytes) { _mm512_storeu_si512(row, bytes); }

inline __m512i broadcast_quad(const int8_t* a) {
  int32_t quad;
  __builtin_memcpy(&quad, a, sizeof quad);
  return _mm512_set1_epi32(quad);
}

inline __m512 load_scales(const uint16_t* scales) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(scales));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

inline __m512i bytes_of(int byte) { return _mm512_set1_epi8(static_cast<char>(byte)); }

inline __m512i field(__m512i row, int mask) { return _mm512_and_si512(row, bytes_of(mask)); }

// (row & mask) ^ flip: two's complement with its sign bit flipped is the code plus a bias.
inline __m512i flipped_field(__m512i row, int mask, int flip) {
  return _mm512_ternarylogic_epi32(row, bytes_of(mask), bytes_of(flip), 0x6a);
}

// Bits of `a` where the mask is set, else of `b`.
inline __m512i blend_bits(__m512i a, __m512i b, int mask) {
  return _mm512_ternarylogic_epi32(a, b, bytes_of(mask), 0xe4);
}

inline __m512i multiply(__m512i sum, __m512i codes, const int8_t* a) {
  return _mm512_dpbusd_epi32(sum, codes, broadcast_quad(a));
}

// The product for one row at a time. `Sums` adds a block of codes to its accumulators and, after a group, gives the sum
// of level * a and the scale that makes a level a value; there are several accumulators because vpdpbusd has a latency.
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
      __m512 c = _mm512_setzero_ps();
      for (size_t g = 0; g < groups; g++) {
        const int8_t* group_end = a + smaller(args.group, static_cast<size_t>(end - a));
        Sums sums;
        for (; a < group_end; a += kBlock, codes += kBlockBytes) {
          for (size_t line = 0; line < kBlockBytes; line += 64) {
            _mm_prefetch(reinterpret_cast<const char*>(codes + kAhead + line), _MM_HINT_NTA);
          }
          sums.add(codes, a);
        }
        const __m512 sum = _mm512_cvtepi32_ps(sums.total(a_sum[g]));
        const __m512 w_scale = Sums::scale(load_scales(scales + g * kTile));
        c = _mm512_fmadd_ps(sum, _mm512_mul_ps(_mm512_set1_ps(a_scale[g]), w_scale), c);
      }
      _mm512_storeu_ps(args.c + i * args.c_stride + (tile - args.tile_begin) * kTile, c);
    }
  }
}

}  // namespace
}  // namespace edgekit::gemm
