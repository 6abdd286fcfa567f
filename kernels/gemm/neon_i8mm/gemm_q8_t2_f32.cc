#include "gemm/kernels.h"
#include "gemm/neon_i8mm/i8mm.h"

namespace edgekit::gemm {

void gemm_q8_t2_f32_4x16x32_neon_i8mm(const edgekit_gemm_args* args) {
  neon_i8mm::prefill(*args, {unpack_pairs<LevelsT2>, block_bytes(2), 0, 1.0f});
}

}  // namespace edgekit::gemm
