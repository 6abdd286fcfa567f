#include "gemm/kernels.h"
#include "gemm/neon/long_multiply.h"
#include "gemm/neon/unpack.h"

namespace edgekit::gemm {
namespace {

struct Sums {
  static constexpr size_t kBits = 8;
  static constexpr bool kHalved = false;
  static constexpr int8_t kBias[kQuads] = {};

  // Two quads fit in 16 bits.
  template <int kPair>
  static void add(Wide* wide, const uint8_t* codes, int8x16_t a) {
    const int8x16_t quad0 = repeat_quad<2 * kPair % 4>(a), quad1 = repeat_quad<2 * kPair % 4 + 1>(a);
    for (size_t j = 0; j < kFours; j++) {
      const int8x16_t w0 = as_signed(load_codes(codes + 2 * kPair * kRow + 16 * j));
      const int8x16_t w1 = as_signed(load_codes(codes + (2 * kPair + 1) * kRow + 16 * j));
      int16x8_t low = vmull_s8(vget_low_s8(w0), vget_low_s8(quad0));
      int16x8_t high = vmull_high_s8(w0, quad0);
      low = vmlal_s8(low, vget_low_s8(w1), vget_low_s8(quad1));
      high = vmlal_high_s8(high, w1, quad1);
      wide->v[2 * j] = vpadalq_s16(wide->v[2 * j], low);
      wide->v[2 * j + 1] = vpadalq_s16(wide->v[2 * j + 1], high);
    }
  }

  static Columns of_group(size_t blocks, const uint8_t* codes, const int8_t* a, int32_t) {
    Wide wide = {};
    do {
      prefetch_block(codes, block_bytes(kBits));
      const int8x16_t a0 = vld1q_s8(a), a1 = vld1q_s8(a + 16);
      add<0>(&wide, codes, a0);
      add<1>(&wide, codes, a0);
      add<2>(&wide, codes, a1);
      add<3>(&wide, codes, a1);
      codes += block_bytes(kBits);
      a += kBlock;
    } while (--blocks > 0);
    return columns_of(wide, 0);
  }
};

}  // namespace

void gemm_q8_q8_f32_1x16x32_neon(const edgekit_gemm_args* args) { decode<Sums>(*args); }

void gemm_q8_q8_f32_4x16x32_neon(const edgekit_gemm_args* args) {
  neon::prefill_wide(*args, {unpack<LevelsQ8>, block_bytes(8), 0, 1.0f});
}

}  // namespace edgekit::gemm
