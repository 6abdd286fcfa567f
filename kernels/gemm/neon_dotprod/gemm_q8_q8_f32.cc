#include "gemm/kernels.h"
#include "gemm/neon_dotprod/dotprod.h"

namespace edgekit::gemm {
namespace {

struct Sums {
  static constexpr size_t kBits = 8;
  static constexpr bool kHalved = false;
  static constexpr int8_t kBias[kQuads] = {};

  template <int kQuad>
  static void add(Columns* sums, const uint8_t* codes, int8x16_t a) {
    for (size_t j = 0; j < kFours; j++) {
      sums->v[j] = dot<kQuad % 4>(sums->v[j], as_signed(load_codes(codes + kQuad * kRow + 16 * j)), a);
    }
  }

  static Columns of_group(size_t blocks, const uint8_t* codes, const int8_t* a, int32_t bias) {
    Columns even = all_columns(bias), odd = {};  // two chains a column: sdot has a latency
    do {
      prefetch_block(codes, block_bytes(kBits));
      const int8x16_t a0 = vld1q_s8(a), a1 = vld1q_s8(a + 16);
      add<0>(&even, codes, a0);
      add<1>(&odd, codes, a0);
      add<2>(&even, codes, a0);
      add<3>(&odd, codes, a0);
      add<4>(&even, codes, a1);
      add<5>(&odd, codes, a1);
      add<6>(&even, codes, a1);
      add<7>(&odd, codes, a1);
      codes += block_bytes(kBits);
      a += kBlock;
    } while (--blocks > 0);
    for (size_t j = 0; j < kFours; j++) even.v[j] = vaddq_s32(even.v[j], odd.v[j]);
    return even;
  }
};

}  // namespace

void gemm_q8_q8_f32_1x16x32_neon_dotprod(const edgekit_gemm_args* args) { decode<Sums, kFloatStart>(*args); }

void gemm_q8_q8_f32_4x16x32_neon_dotprod(const edgekit_gemm_args* args) {
  neon_dotprod::prefill(*args, {unpack_halves<LevelsQ8>, block_bytes(8), 0, 1.0f});
}

}  // namespace edgekit::gemm
