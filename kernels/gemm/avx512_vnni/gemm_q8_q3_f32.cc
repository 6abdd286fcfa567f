#include "gemm/avx512_vnni/avx512_vnni.h"
#include "gemm/kernels.h"

namespace edgekit::gemm {
namespace {

constexpr int32_t kBias = 4;

// Quads 6 and 7 put together in bits 7:5 of a byte from bits 7:6 of row A or B and bit 7 or 6 of row C.
inline __m512i quad6(__m512i a, __m512i c) {
  return flipped_field(blend_bits(a, _mm512_srli_epi16(c, 2), 0xc0), 0xe0, 0x80);
}
inline __m512i quad7(__m512i b, __m512i c) {
  return flipped_field(blend_bits(b, _mm512_srli_epi16(c, 1), 0xc0), 0xe0, 0x80);
}

// Fields are masked where they are: those at bit 3 count 8 times, quads 6 and 7, put at bit 5, 32 times.
struct Sums {
  static constexpr size_t kBits = 3;
  __m512i ones[2] = {};
  __m512i eights[2] = {};
  __m512i high[2] = {};

  void add(const uint8_t* codes, const int8_t* activations) {
    const __m512i a = load_row(codes), b = load_row(codes + kRow), c = load_row(codes + 2 * kRow);
    ones[0] = multiply(ones[0], field(a, 0x07), activations);
    ones[1] = multiply(ones[1], field(b, 0x07), activations + 4);
    ones[0] = multiply(ones[0], field(c, 0x07), activations + 8);
    eights[0] = multiply(eights[0], field(a, 0x38), activations + 12);
    eights[1] = multiply(eights[1], field(b, 0x38), activations + 16);
    eights[0] = multiply(eights[0], field(c, 0x38), activations + 20);
    high[0] = multiply(high[0], quad6(a, c), activations + 24);
    high[1] = multiply(high[1], quad7(b, c), activations + 28);
  }
  __m512i total(int32_t a_sum) const {
    const __m512i sum_of_eights = _mm512_srai_epi32(_mm512_add_epi32(eights[0], eights[1]), 3);
    const __m512i sum_of_high = _mm512_srai_epi32(_mm512_add_epi32(high[0], high[1]), 5);
    const __m512i sum_of_ones = _mm512_add_epi32(ones[0], ones[1]);
    const __m512i sum = _mm512_add_epi32(sum_of_ones, _mm512_add_epi32(sum_of_eights, sum_of_high));
    return _mm512_sub_epi32(sum, _mm512_set1_epi32(kBias * a_sum));
  }
  static __m512 scale(__m512 w_scale) { return w_scale; }
};

void unpack(size_t blocks, const uint8_t* codes, uint8_t* bytes) {
  for (; blocks > 0; blocks--, codes += block_bytes(3), bytes += kUnpackedBlock) {
    const __m512i rows[3] = {load_row(codes), load_row(codes + kRow), load_row(codes + 2 * kRow)};
    for (size_t r = 0; r < 3; r++) {
      store_row(bytes + r * kRow, field(rows[r], 0x07));
      store_row(bytes + (r + 3) * kRow, field(_mm512_srli_epi16(rows[r], 3), 0x07));
    }
    store_row(bytes + 6 * kRow, field(_mm512_srli_epi16(quad6(rows[0], rows[2]), 5), 0x07));
    store_row(bytes + 7 * kRow, field(_mm512_srli_epi16(quad7(rows[1], rows[2]), 5), 0x07));
  }
}

}  // namespace

void gemm_q8_q3_f32_1x16x32_avx512_vnni(const edgekit_gemm_args* args) { decode<Sums>(*args); }

void gemm_q8_q3_f32_7x32x32_avx512_vnni(const edgekit_gemm_args* args) {
  avx512_vnni::prefill(*args, {unpack, block_bytes(3), kBias, 1.0f});
}

}  // namespace edgekit::gemm
