#include "gemm/avx512_vnni/avx512_vnni.h"
#include "gemm/kernels.h"

namespace edgekit::gemm {
namespace {

constexpr int32_t kBias = 128;

inline __m512i biased(__m512i row) { return _mm512_xor_si512(row, bytes_of(0x80)); }

struct Sums {
  static constexpr size_t kBits = 8;
  __m512i sums[4] = {};

  void add(const uint8_t* codes, const int8_t* a) {
    for (size_t quad = 0; quad < kQuads; quad++) {
      sums[quad % 4] = multiply(sums[quad % 4], biased(load_row(codes + quad * kRow)), a + 4 * quad);
    }
  }
  __m512i total(int32_t a_sum) const {
    const __m512i sum = _mm512_add_epi32(_mm512_add_epi32(sums[0], sums[1]), _mm512_add_epi32(sums[2], sums[3]));
    return _mm512_sub_epi32(sum, _mm512_set1_epi32(kBias * a_sum));
  }
  static __m512 scale(__m512 w_scale) { return w_scale; }
};

void unpack(size_t blocks, const uint8_t* codes, uint8_t* bytes) {
  for (size_t row = 0; row < blocks * kQuads; row++) {
    store_row(bytes + row * kRow, biased(load_row(codes + row * kRow)));
  }
}

}  // namespace

void gemm_q8_q8_f32_1x16x32_avx512_vnni(const edgekit_gemm_args* args) { decode<Sums>(*args); }

void gemm_q8_q8_f32_7x32x32_avx512_vnni(const edgekit_gemm_args* args) {
  avx512_vnni::prefill(*args, {unpack, block_bytes(8), kBias, 1.0f});
}

}  // namespace edgekit::gemm
