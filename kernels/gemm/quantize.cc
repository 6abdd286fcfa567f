#include "gemm/quantize.h"

#include "edgekit/cpu.h"
#include "edgekit/gemm.h"

namespace edgekit::gemm {
namespace {

struct Quantizers {
  decltype(&scalar::quantize_row) row;
  decltype(&scalar::quantize_weights) weights;
};

// On aarch64 the code for any CPU already uses its vectors.
Quantizers choose_quantizers() {
#if defined(__x86_64__)
  const uint64_t features = edgekit_cpu_features();
  if ((features & EDGEKIT_CPU_AVX512_VNNI) != 0) return {avx512_vnni::quantize_row, avx512_vnni::quantize_weights};
  if ((features & EDGEKIT_CPU_AVX2) != 0) return {avx2::quantize_row, avx2::quantize_weights};
#endif
  return {scalar::quantize_row, scalar::quantize_weights};
}

}  // namespace
}  // namespace edgekit::gemm

using namespace edgekit::gemm;

void edgekit_quantize_row(size_t k, size_t k_padded, size_t group, const float* x, int8_t* codes, float* scale,
                          int32_t* sum) {
  static const Quantizers quantizers = choose_quantizers();
  quantizers.row(k, k_padded, group, x, codes, scale, sum);
}

void edgekit_quantize_weights(edgekit_format format, size_t n, size_t k, size_t group, size_t steps,
                              const float* weights, const float* importance, int8_t* codes, uint16_t* scales) {
  static const Quantizers quantizers = choose_quantizers();
  quantizers.weights(format, n, k, group, steps, weights, importance, codes, scales);
}
