#include "gemm/avx512_vnni/floats.h"
#include "gemm/kernels.h"

namespace edgekit::gemm {

void gemm_f32_f16_f32_1x64x1_avx512_vnni(const edgekit_gemm_args* args) {
  multiply_float_tiles<1, 4, uint16_t>(*args);
}

void gemm_f32_f16_f32_12x32x1_avx512_vnni(const edgekit_gemm_args* args) {
  multiply_float_tiles<12, 2, uint16_t>(*args);
}

}  // namespace edgekit::gemm
