#include "gemm/kernels.h"
#include "gemm/neon/floats.h"

namespace edgekit::gemm {

void gemm_f32_f16_f32_1x32x1_neon(const edgekit_gemm_args* args) { multiply_float_tiles<1, 2, uint16_t>(*args); }
void gemm_f32_f16_f32_4x16x1_neon(const edgekit_gemm_args* args) { multiply_float_tiles<4, 1, uint16_t>(*args); }

}  // namespace edgekit::gemm
