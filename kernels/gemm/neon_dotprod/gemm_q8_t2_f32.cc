#include "gemm/kernels.h"
#include "gemm/neon_dotprod/two_bits.h"

namespace edgekit::gemm {

void gemm_q8_t2_f32_1x16x32_neon_dotprod(const edgekit_gemm_args* args) {
  decode<TwoBitSums<false>, kFloatStart>(*args);
}

void gemm_q8_t2_f32_4x16x32_neon_dotprod(const edgekit_gemm_args* args) {
  neon_dotprod::prefill(*args, {unpack_halves<LevelsT2>, block_bytes(2), 0, 1.0f});
}

}  // namespace edgekit::gemm
