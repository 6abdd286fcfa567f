#include "gemm/avx2/short_multiply.h"
#include "gemm/kernels.h"

namespace edgekit::gemm {
namespace {

struct SignedSums {
  static constexpr size_t kBits = 8;
  static constexpr bool kHalved = false;

  static Columns of_group(size_t blocks, const uint8_t* codes, const int8_t* a, int32_t) {
    Columns sums = {};
    for (size_t quad = 0; quad < blocks * kQuads; quad++) {
      const __m256i broadcast = broadcast_quad(a + 4 * quad);
      for (size_t h = 0; h < kHalves; h++) {
        const __m256i w = load_codes(codes + quad * kRow + 32 * h);
        sums.v[h] = multiply_signed(sums.v[h], w, _mm256_abs_epi8(w), broadcast);
      }
    }
    return sums;
  }
};

void copy(size_t blocks, const uint8_t* codes, uint8_t* bytes) {
  __builtin_memcpy(bytes, codes, blocks * kUnpackedBlock);
}

}  // namespace

void gemm_q8_q8_f32_1x16x32_avx2(const edgekit_gemm_args* args) { decode<SignedSums>(*args); }

void gemm_q8_q8_f32_4x16x32_avx2(const edgekit_gemm_args* args) {
  avx2::prefill_wide(*args, {copy, block_bytes(8), 0, 1.0f});
}

}  // namespace edgekit::gemm
