// Matrix products with vpdpbusd on eight columns at once. It multiplies unsigned by signed bytes, so codes enter with a
// bias that makes them unsigned: what comes out is sum(level * a) + bias * sum(a).
#pragma once

#include "gemm/avx2/unpack.h"
#include "gemm/unpacking.h"

namespace edgekit::gemm {

namespace avx_vnni {
// The product for many rows; `unpacking` gives unsigned bytes.
void prefill(const edgekit_gemm_args& args, const Unpacking& unpacking);
}  // namespace avx_vnni

namespace {

template <class Bytes, bool kHalf>
struct Sums {
  static constexpr size_t kBits = Bytes::kBits;
  static constexpr bool kHalved = kHalf;

  static Columns of_group(size_t blocks, const uint8_t* codes, const int8_t* a, int32_t a_sum) {
    constexpr size_t kChains = 4;  // vpdpbusd has a latency
    Columns chains[kChains] = {};
    for (; blocks > 0; blocks--, codes += block_bytes(kBits), a += kBlock) {
      Bytes::of_block(codes, [&](size_t quad, size_t h, __m256i bytes) {
        __m256i& sum = chains[quad % kChains].v[h];
        sum = _mm256_dpbusd_avx_epi32(sum, bytes, broadcast_quad(a + 4 * quad));
      });
    }
    Columns sums;
    for (size_t h = 0; h < kHalves; h++) {
      sums.v[h] = _mm256_add_epi32(_mm256_add_epi32(chains[0].v[h], chains[1].v[h]),
                                   _mm256_add_epi32(chains[2].v[h], chains[3].v[h]));
    }
    return minus(sums, Bytes::kBias * a_sum);
  }
};

}  // namespace
}  // namespace edgekit::gemm
