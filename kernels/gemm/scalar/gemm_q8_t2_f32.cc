#include "gemm/kernels.h"
#include "gemm/scalar/scalar.h"

namespace edgekit::gemm {

void gemm_q8_t2_f32_1x16x32_scalar(const edgekit_gemm_args* args) { multiply<T2>(args); }
void gemm_q8_t2_f32_4x16x32_scalar(const edgekit_gemm_args* args) { multiply<T2>(args); }

}  // namespace edgekit::gemm
