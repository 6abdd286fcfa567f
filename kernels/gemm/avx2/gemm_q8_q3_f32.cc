#include "gemm/avx2/short_multiply.h"
#include "gemm/kernels.h"

namespace edgekit::gemm {

void gemm_q8_q3_f32_1x16x32_avx2(const edgekit_gemm_args* args) { decode<Sums<BytesQ3, false>>(*args); }

void gemm_q8_q3_f32_4x16x32_avx2(const edgekit_gemm_args* args) {
  avx2::prefill_narrow(*args, {unpack<BytesQ3>, block_bytes(3), BytesQ3::kBias, 1.0f});
}

}  // namespace edgekit::gemm
