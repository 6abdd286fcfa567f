#include "gemm/avx2/short_multiply.h"
#include "gemm/kernels.h"

namespace edgekit::gemm {

void gemm_q8_q2_f32_1x16x32_avx2(const edgekit_gemm_args* args) { decode<Sums<BytesQ2, true>>(*args); }

void gemm_q8_q2_f32_4x16x32_avx2(const edgekit_gemm_args* args) {
  avx2::prefill_narrow(*args, {unpack<BytesQ2>, block_bytes(2), BytesQ2::kBias, 0.5f});
}

}  // namespace edgekit::gemm
