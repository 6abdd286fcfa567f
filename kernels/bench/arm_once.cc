// Runs one matrix kernel once, under an emulator that writes down what is executed (arm_cycles.py).
//
//   arm_once KERNEL M N K GROUP
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "edgekit/gemm.h"

int main(int argc, char** argv) {
  const edgekit_gemm_kernel* kernel = argc == 6 ? edgekit_gemm_find(argv[1]) : nullptr;
  if (kernel == nullptr || kernel->run == nullptr) {
    std::fprintf(stderr, "usage: arm_once KERNEL M N K GROUP\nhint: the kernel is of this architecture\n");
    return 2;
  }
  const size_t m = std::strtoul(argv[2], nullptr, 10), n = std::strtoul(argv[3], nullptr, 10);
  const size_t k = std::strtoul(argv[4], nullptr, 10), group = std::strtoul(argv[5], nullptr, 10);
  const size_t tiles = n / 16, groups = k / group;
  std::vector<uint8_t> codes(tiles * edgekit_tile_code_bytes(kernel->weights, k));
  std::vector<uint8_t> scales(tiles * edgekit_tile_scale_bytes(kernel->weights, k, group));
  std::vector<int8_t> a(m * k);
  std::vector<float> a_scale(m * groups), c(m * n);
  std::vector<int32_t> a_sum(m * groups);
  edgekit_gemm_args args = {};
  args.m = m;
  args.k = k;
  args.group = group;
  args.tile_end = tiles;
  args.a = a.data();
  args.a_stride = k;
  args.a_scale = a_scale.data();
  args.a_sum = a_sum.data();
  args.codes = codes.data();
  args.scales = reinterpret_cast<const uint16_t*>(scales.data());
  args.c = c.data();
  args.c_stride = n;
  kernel->run(&args);
  return 0;
}
