// The functions named in kernels.inc. Those of another architecture are declared and never defined.
#pragma once

#include "edgekit/gemm.h"

namespace edgekit::gemm {

#define EDGEKIT_GEMM_KERNEL(name, weights, mr, isa) void name(const edgekit_gemm_args* args);
#include "gemm/kernels.inc"
#undef EDGEKIT_GEMM_KERNEL

}  // namespace edgekit::gemm
