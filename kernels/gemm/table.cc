#include <string.h>

#include "edgekit/cpu.h"
#include "edgekit/gemm.h"
#include "gemm/kernels.h"

namespace edgekit::gemm {
namespace {

// What the ISA words of kernels.inc need; tests/kernels/test_gemm.cc holds this and edgekit_isa_features() together.
constexpr uint64_t kNeeds_scalar = 0;
constexpr uint64_t kNeeds_neon = EDGEKIT_CPU_NEON;
constexpr uint64_t kNeeds_neon_dotprod = kNeeds_neon | EDGEKIT_CPU_DOTPROD;
constexpr uint64_t kNeeds_neon_i8mm = kNeeds_neon_dotprod | EDGEKIT_CPU_I8MM;
constexpr uint64_t kNeeds_avx2 = EDGEKIT_CPU_AVX2;
constexpr uint64_t kNeeds_avx_vnni = kNeeds_avx2 | EDGEKIT_CPU_AVX_VNNI;
constexpr uint64_t kNeeds_avx512_vnni = kNeeds_avx2 | EDGEKIT_CPU_AVX512_VNNI;

#if defined(__x86_64__)
#define EDGEKIT_X86(function) function
#else
#define EDGEKIT_X86(function) nullptr
#endif
#if defined(__aarch64__)
#define EDGEKIT_ARM(function) function
#else
#define EDGEKIT_ARM(function) nullptr
#endif

#define EDGEKIT_RUN_scalar(function) function
#define EDGEKIT_RUN_neon(function) EDGEKIT_ARM(function)
#define EDGEKIT_RUN_neon_dotprod(function) EDGEKIT_ARM(function)
#define EDGEKIT_RUN_neon_i8mm(function) EDGEKIT_ARM(function)
#define EDGEKIT_RUN_avx2(function) EDGEKIT_X86(function)
#define EDGEKIT_RUN_avx_vnni(function) EDGEKIT_X86(function)
#define EDGEKIT_RUN_avx512_vnni(function) EDGEKIT_X86(function)

#define EDGEKIT_GEMM_KERNEL(name, weights, mr, isa) \
  {#name, EDGEKIT_##weights, mr, kNeeds_##isa, EDGEKIT_RUN_##isa(name)},

constexpr edgekit_gemm_kernel kKernels[] = {
#include "gemm/kernels.inc"
};

constexpr size_t kKernelCount = sizeof kKernels / sizeof kKernels[0];

}  // namespace
}  // namespace edgekit::gemm

using namespace edgekit::gemm;

const edgekit_gemm_kernel* edgekit_gemm_kernels(size_t* count) {
  *count = kKernelCount;
  return kKernels;
}

const edgekit_gemm_kernel* edgekit_gemm_find(const char* name) {
  for (const edgekit_gemm_kernel& kernel : kKernels) {
    if (strcmp(kernel.name, name) == 0) return &kernel;
  }
  return nullptr;
}

const edgekit_gemm_kernel* edgekit_gemm_choose(edgekit_format weights, size_t m, uint64_t features) {
  for (const edgekit_gemm_kernel& kernel : kKernels) {
    const bool fits = kernel.weights == weights && (kernel.mr == 1) == (m == 1);
    if (fits && (kernel.features & ~features) == 0) return &kernel;
  }
  return nullptr;
}
