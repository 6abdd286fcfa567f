#include "gemm/avx512_vnni/avx512_vnni.h"
#include "gemm/kernels.h"

namespace edgekit::gemm {
namespace {

constexpr int32_t kBias = 8;

// Both nibbles are masked where they are, so the high one counts 16 times.
struct Sums {
  static constexpr size_t kBits = 4;
  __m512i low[2] = {};
  __m512i high[2] = {};

  void add(const uint8_t* codes, const int8_t* a) {
    for (size_t r = 0; r < 4; r++) {
      const __m512i row = load_row(codes + r * kRow);
      low[r % 2] = multiply(low[r % 2], field(row, 0x0f), a + 8 * r);
      high[r % 2] = multiply(high[r % 2], flipped_field(row, 0xf0, 0x80), a + 8 * r + 4);
    }
  }
  __m512i total(int32_t a_sum) const {
    const __m512i sixteenths = _mm512_add_epi32(high[0], high[1]);
    const __m512i sum = _mm512_add_epi32(_mm512_add_epi32(low[0], low[1]), _mm512_srai_epi32(sixteenths, 4));
    return _mm512_sub_epi32(sum, _mm512_set1_epi32(kBias * a_sum));
  }
  static __m512 scale(__m512 w_scale) { return w_scale; }
};

void unpack(size_t blocks, const uint8_t* codes, uint8_t* bytes) {
  for (size_t r = 0; r < blocks * 4; r++) {
    const __m512i row = load_row(codes + r * kRow);
    store_row(bytes + 2 * r * kRow, field(row, 0x0f));
    store_row(bytes + (2 * r + 1) * kRow, flipped_field(_mm512_srli_epi16(row, 4), 0x0f, 0x08));
  }
}

}  // namespace

void gemm_q8_q4_f32_1x16x32_avx512_vnni(const edgekit_gemm_args* args) { decode<Sums>(*args); }

void gemm_q8_q4_f32_7x32x32_avx512_vnni(const edgekit_gemm_args* args) {
  avx512_vnni::prefill(*args, {unpack, block_bytes(4), kBias, 1.0f});
}

}  // namespace edgekit::gemm
