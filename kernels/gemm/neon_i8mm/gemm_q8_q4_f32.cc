#include "gemm/kernels.h"
#include "gemm/neon_i8mm/i8mm.h"

namespace edgekit::gemm {

void gemm_q8_q4_f32_4x16x32_neon_i8mm(const edgekit_gemm_args* args) {
  neon_i8mm::prefill(*args, {unpack_pairs<LevelsQ4>, block_bytes(4), 0, 1.0f});
}

}  // namespace edgekit::gemm
