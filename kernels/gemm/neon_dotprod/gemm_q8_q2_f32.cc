#include "gemm/kernels.h"
#include "gemm/neon/unpack.h"
#include "gemm/neon_dotprod/two_bits.h"

namespace edgekit::gemm {
namespace {

struct Sums {
  static constexpr size_t kBits = 2;
  static constexpr bool kHalved = true;

  // A level is 2 * code + 1.
  static Columns of_group(size_t blocks, const uint8_t* codes, const int8_t* a, int32_t a_sum) {
    Columns sums = two_bit_sums(blocks, codes, a);
    for (size_t j = 0; j < kFours; j++) sums.v[j] = vaddq_s32(vaddq_s32(sums.v[j], sums.v[j]), vdupq_n_s32(a_sum));
    return sums;
  }
};

}  // namespace

void gemm_q8_q2_f32_1x16x32_neon_dotprod(const edgekit_gemm_args* args) { decode<Sums>(*args); }

void gemm_q8_q2_f32_4x16x32_neon_dotprod(const edgekit_gemm_args* args) {
  neon_dotprod::prefill(*args, {unpack<LevelsQ2>, block_bytes(2), 0, 0.5f});
}

}  // namespace edgekit::gemm
