// Runs one kernel of llama.cpp once, under an emulator that writes down what is executed (arm_cycles.py).
//
//   arm_once_llama KERNEL M N K
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

extern "C" {
using Dot = void(int, float*, size_t, const void*, size_t, const void*, size_t, int);
using Rows = void(int, float*, size_t, const void*, const void*, int, int);
Dot ggml_vec_dot_q4_0_q8_0, ggml_vec_dot_q3_K_q8_K, ggml_vec_dot_q2_K_q8_K, ggml_vec_dot_tq2_0_q8_K;
#ifdef __ARM_FEATURE_DOTPROD
Rows ggml_gemv_q4_0_4x4_q8_0, ggml_gemm_q4_0_4x4_q8_0;
#endif
#ifdef __ARM_FEATURE_MATMUL_INT8
Rows ggml_gemv_q4_0_4x8_q8_0, ggml_gemm_q4_0_4x8_q8_0;
#endif
}

namespace {

struct Kernel {
  const char* name;
  Dot* dot;
  Rows* rows;
};

const Kernel kKernels[] = {
    {"ggml_vec_dot_q4_0_q8_0", ggml_vec_dot_q4_0_q8_0, nullptr},
    {"ggml_vec_dot_q3_K_q8_K", ggml_vec_dot_q3_K_q8_K, nullptr},
    {"ggml_vec_dot_q2_K_q8_K", ggml_vec_dot_q2_K_q8_K, nullptr},
    {"ggml_vec_dot_tq2_0_q8_K", ggml_vec_dot_tq2_0_q8_K, nullptr},
#ifdef __ARM_FEATURE_DOTPROD
    {"ggml_gemv_q4_0_4x4_q8_0", nullptr, ggml_gemv_q4_0_4x4_q8_0},
    {"ggml_gemm_q4_0_4x4_q8_0", nullptr, ggml_gemm_q4_0_4x4_q8_0},
#endif
#ifdef __ARM_FEATURE_MATMUL_INT8
    {"ggml_gemv_q4_0_4x8_q8_0", nullptr, ggml_gemv_q4_0_4x8_q8_0},
    {"ggml_gemm_q4_0_4x8_q8_0", nullptr, ggml_gemm_q4_0_4x8_q8_0},
#endif
};

}  // namespace

int main(int argc, char** argv) {
  for (const Kernel& kernel : kKernels) {
    if (argc != 5 || std::strcmp(argv[1], kernel.name) != 0) continue;
    const int m = std::atoi(argv[2]), n = std::atoi(argv[3]), k = std::atoi(argv[4]);
    // Two bytes a value are more than any of the formats takes.
    const std::vector<char> a(size_t(m) * k * 2), b(size_t(n) * k * 2);
    std::vector<float> c(size_t(m) * n);
    if (kernel.rows != nullptr) kernel.rows(k, c.data(), n, b.data(), a.data(), m, n);
    for (int j = 0; kernel.dot != nullptr && j < n; j++) {
      kernel.dot(k, &c[j], 0, b.data() + size_t(j) * k, 0, a.data(), 0, 1);
    }
    return 0;
  }
  std::fprintf(stderr, "usage: arm_once_llama KERNEL M N K\nhint: the kernel is compiled in for this CPU\n");
  return 2;
}
