#include "gemm/avx_vnni/avx_vnni.h"
#include "gemm/kernels.h"

namespace edgekit::gemm {

void gemm_q8_q8_f32_1x16x32_avx_vnni(const edgekit_gemm_args* args) { decode<Sums<BytesQ8, false>>(*args); }

void gemm_q8_q8_f32_6x16x32_avx_vnni(const edgekit_gemm_args* args) {
  avx_vnni::prefill(*args, {unpack<BytesQ8>, block_bytes(8), BytesQ8::kBias, 1.0f});
}

}  // namespace edgekit::gemm
