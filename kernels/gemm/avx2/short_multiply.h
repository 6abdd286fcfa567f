// Matrix products without VNNI: vpmaddubsw multiplies unsigned by signed bytes into sums of two in 16 bits, which
// saturate; vpmaddwd with ones folds two of those into 32 bits.
#pragma once

#include "gemm/avx2/unpack.h"
#include "gemm/unpacking.h"

namespace edgekit::gemm {

namespace avx2 {
// The product for many rows, for unsigned bytes up to 15: a block of them fits in 16 bits (8 * 2 * 15 * 127 = 30480).
void prefill_narrow(const edgekit_gemm_args& args, const Unpacking& unpacking);
// The same for signed bytes.
void prefill_wide(const edgekit_gemm_args& args, const Unpacking& unpacking);
}  // namespace avx2

namespace {

inline __m256i add_pairs(__m256i sum, __m256i shorts) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(shorts, _mm256_set1_epi16(1)));
}

// sum += w * quad for signed bytes: |w| times the quad with the signs of w. 2 * 128 * 127 fits in 16 bits.
inline __m256i multiply_signed(__m256i sum, __m256i w, __m256i magnitude, __m256i quad) {
  return add_pairs(sum, _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(quad, w)));
}

// For unsigned bytes up to 15.
template <class Bytes, bool kHalf>
struct Sums {
  static constexpr size_t kBits = Bytes::kBits;
  static constexpr bool kHalved = kHalf;

  static Columns of_group(size_t blocks, const uint8_t* codes, const int8_t* a, int32_t a_sum) {
    Columns sums = {};
    for (; blocks > 0; blocks--, codes += block_bytes(kBits), a += kBlock) {
      Columns narrow = {};
      Bytes::of_block(codes, [&](size_t quad, size_t h, __m256i bytes) {
        narrow.v[h] = _mm256_add_epi16(narrow.v[h], _mm256_maddubs_epi16(bytes, broadcast_quad(a + 4 * quad)));
      });
      for (size_t h = 0; h < kHalves; h++) sums.v[h] = add_pairs(sums.v[h], narrow.v[h]);
    }
    return minus(sums, Bytes::kBias * a_sum);
  }
};

}  // namespace
}  // namespace edgekit::gemm
