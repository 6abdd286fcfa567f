#include "gemm/avx512_vnni/two_bits.h"
#include "gemm/kernels.h"

namespace edgekit::gemm {
namespace {

// A level is 2 * code + 1, an unpacked byte 2 * (code + 2).
constexpr int32_t kBias = 3;

struct Sums : TwoBitSums {
  __m512i total(int32_t a_sum) const {
    return _mm512_sub_epi32(_mm512_slli_epi32(biased_total(), 1), _mm512_set1_epi32(kBias * a_sum));
  }
  static __m512 scale(__m512 w_scale) { return _mm512_mul_ps(w_scale, _mm512_set1_ps(0.5f)); }
};

void unpack(size_t blocks, const uint8_t* codes, uint8_t* bytes) {
  for (size_t r = 0; r < blocks * 2; r++, bytes += 4 * kRow) {
    const __m512i row = load_row(codes + r * kRow);
    store_row(bytes, field(_mm512_slli_epi16(row, 1), 0x06));
    store_row(bytes + kRow, field(_mm512_srli_epi16(row, 1), 0x06));
    store_row(bytes + 2 * kRow, field(_mm512_srli_epi16(row, 3), 0x06));
    store_row(bytes + 3 * kRow, flipped_field(_mm512_srli_epi16(row, 5), 0x06, 0x04));
  }
}

}  // namespace

void gemm_q8_q2_f32_1x16x32_avx512_vnni(const edgekit_gemm_args* args) { decode<Sums>(*args); }

void gemm_q8_q2_f32_7x32x32_avx512_vnni(const edgekit_gemm_args* args) {
  avx512_vnni::prefill(*args, {unpack, block_bytes(2), kBias, 0.5f});
}

}  // namespace edgekit::gemm
