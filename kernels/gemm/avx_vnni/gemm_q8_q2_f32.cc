#include "gemm/avx_vnni/avx_vnni.h"
#include "gemm/kernels.h"

namespace edgekit::gemm {

void gemm_q8_q2_f32_1x16x32_avx_vnni(const edgekit_gemm_args* args) { decode<Sums<BytesQ2, true>>(*args); }

void gemm_q8_q2_f32_6x16x32_avx_vnni(const edgekit_gemm_args* args) {
  avx_vnni::prefill(*args, {unpack<BytesQ2>, block_bytes(2), BytesQ2::kBias, 0.5f});
}

}  // namespace edgekit::gemm
