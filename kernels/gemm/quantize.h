// quantize_row.cc and quantize_weights.cc, once for each ISA they are compiled for.
#pragma once

#include "edgekit/gemm.h"

namespace edgekit::gemm {

#define EDGEKIT_QUANTIZERS(isa)                                                                                \
  namespace isa {                                                                                              \
  void quantize_row(size_t k, size_t k_padded, size_t group, const float* x, int8_t* codes, float* scale,      \
                    int32_t* sum);                                                                             \
  void quantize_weights(edgekit_format format, size_t n, size_t k, size_t group, size_t steps,                 \
                        const float* weights, const float* importance, int8_t* codes, uint16_t* scales);       \
  }
EDGEKIT_QUANTIZERS(scalar)
EDGEKIT_QUANTIZERS(avx2)
EDGEKIT_QUANTIZERS(avx512_vnni)
#undef EDGEKIT_QUANTIZERS

}  // namespace edgekit::gemm
