#include "gemm/avx2/floats.h"
#include "gemm/kernels.h"

namespace edgekit::gemm {

void gemm_f32_f16_f32_1x64x1_avx2(const edgekit_gemm_args* args) { multiply_float_tiles<1, 4, uint16_t>(*args); }
void gemm_f32_f16_f32_6x16x1_avx2(const edgekit_gemm_args* args) { multiply_float_tiles<6, 1, uint16_t>(*args); }

}  // namespace edgekit::gemm
