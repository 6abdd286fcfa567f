#include "gemm/kernels.h"
#include "gemm/scalar/scalar.h"

namespace edgekit::gemm {
namespace {

float itself(float value) { return value; }

}  // namespace

void gemm_f32_f32_f32_1x16x1_scalar(const edgekit_gemm_args* args) { multiply_floats<float, itself>(args); }
void gemm_f32_f32_f32_4x16x1_scalar(const edgekit_gemm_args* args) { multiply_floats<float, itself>(args); }

}  // namespace edgekit::gemm
