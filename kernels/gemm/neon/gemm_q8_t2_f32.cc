#include "gemm/kernels.h"
#include "gemm/neon/unpack.h"
#include "gemm/neon/two_bits.h"

namespace edgekit::gemm {
namespace {

struct Sums {
  static constexpr size_t kBits = 2;
  static constexpr bool kHalved = false;

  static Columns of_group(size_t blocks, const uint8_t* codes, const int8_t* a, int32_t) {
    return two_bit_sums(blocks, codes, a);
  }
};

}  // namespace

void gemm_q8_t2_f32_1x16x32_neon(const edgekit_gemm_args* args) { decode<Sums>(*args); }

void gemm_q8_t2_f32_4x16x32_neon(const edgekit_gemm_args* args) {
  neon::prefill_narrow(*args, {unpack<LevelsT2>, block_bytes(2), 0, 1.0f});
}

}  // namespace edgekit::gemm
