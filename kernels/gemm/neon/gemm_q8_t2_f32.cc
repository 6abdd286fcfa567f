#include "gemm/kernels.h"
#include "gemm/neon/unpack.h"
#include "gemm/neon/two_bits.h"

namespace edgekit::gemm {

void gemm_q8_t2_f32_1x16x32_neon(const edgekit_gemm_args* args) { decode<TwoBitSums<false>>(*args); }

void gemm_q8_t2_f32_4x16x32_neon(const edgekit_gemm_args* args) {
  neon::prefill_narrow(*args, {unpack<LevelsT2>, block_bytes(2), 0, 1.0f});
}

}  // namespace edgekit::gemm
