#include "gemm/avx_vnni/avx_vnni.h"
#include "gemm/kernels.h"

namespace edgekit::gemm {

void gemm_q8_q3_f32_1x16x32_avx_vnni(const edgekit_gemm_args* args) { decode<Sums<BytesQ3, false>>(*args); }

void gemm_q8_q3_f32_6x16x32_avx_vnni(const edgekit_gemm_args* args) {
  avx_vnni::prefill(*args, {unpack<BytesQ3>, block_bytes(3), BytesQ3::kBias, 1.0f});
}

}  // namespace edgekit::gemm
