#include "gemm/kernels.h"
#include "gemm/neon_dotprod/dotprod.h"

namespace edgekit::gemm {
namespace {

// Nibbles are masked where they are: the low one is code + 8, the high one 16 * code.
struct Sums {
  static constexpr size_t kBits = 4;
  static constexpr bool kHalved = false;
  static constexpr int8_t kBias[kQuads] = {-8, 0, -8, 0, -8, 0, -8, 0};

  template <int kR>
  static void add(Columns* low, Columns* high, const uint8_t* codes, int8x16_t a) {
    for (size_t j = 0; j < kFours; j++) {
      const uint8x16_t row = load_codes(codes + kR * kRow + 16 * j);
      low->v[j] = dot<2 * kR % 4>(low->v[j], field(row, 0x0f), a);
      high->v[j] = dot<2 * kR % 4 + 1>(high->v[j], field(row, 0xf0), a);
    }
  }

  static Columns of_group(size_t blocks, const uint8_t* codes, const int8_t* a, int32_t bias) {
    Columns low = all_columns(bias), high = {};
    do {
      prefetch_block(codes, block_bytes(kBits));
      const int8x16_t a0 = vld1q_s8(a), a1 = vld1q_s8(a + 16);
      add<0>(&low, &high, codes, a0);
      add<1>(&low, &high, codes, a0);
      add<2>(&low, &high, codes, a1);
      add<3>(&low, &high, codes, a1);
      codes += block_bytes(kBits);
      a += kBlock;
    } while (--blocks > 0);
    for (size_t j = 0; j < kFours; j++) low.v[j] = vsraq_n_s32(low.v[j], high.v[j], 4);
    return low;
  }
};

}  // namespace

void gemm_q8_q4_f32_1x16x32_neon_dotprod(const edgekit_gemm_args* args) { decode<Sums, kFloatStart>(*args); }

void gemm_q8_q4_f32_4x16x32_neon_dotprod(const edgekit_gemm_args* args) {
  neon_dotprod::prefill(*args, {unpack_halves<LevelsQ4>, block_bytes(4), 0, 1.0f});
}

}  // namespace edgekit::gemm
