#include "gemm/float16.h"
#include "gemm/kernels.h"
#include "gemm/scalar/scalar.h"

namespace edgekit::gemm {

void gemm_f32_f16_f32_1x16x1_scalar(const edgekit_gemm_args* args) { multiply_floats<uint16_t, from_f16>(args); }
void gemm_f32_f16_f32_4x16x1_scalar(const edgekit_gemm_args* args) { multiply_floats<uint16_t, from_f16>(args); }

}  // namespace edgekit::gemm
