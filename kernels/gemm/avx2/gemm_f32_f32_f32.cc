#include "gemm/avx2/floats.h"
#include "gemm/kernels.h"

namespace edgekit::gemm {

void gemm_f32_f32_f32_1x64x1_avx2(const edgekit_gemm_args* args) { multiply_float_tiles<1, 4, float>(*args); }
void gemm_f32_f32_f32_6x16x1_avx2(const edgekit_gemm_args* args) { multiply_float_tiles<6, 1, float>(*args); }

}  // namespace edgekit::gemm
