#include "gemm/kernels.h"
#include "gemm/neon/long_multiply.h"
#include "gemm/neon/unpack.h"

namespace edgekit::gemm {
namespace {

struct Sums {
  static constexpr size_t kBits = 4;
  static constexpr bool kHalved = false;
  static constexpr int8_t kBias[kQuads] = {-8, 0, -8, 0, -8, 0, -8, 0};
  // A block adds up to 4 * 15 * 127 + 4 * 8 * 127 = 11684 to a 16-bit sum.
  static constexpr size_t kBlocksInNarrow = 2;

  // The low nibble is code + 8.
  template <int kR>
  static void add(Narrow* sums, const uint8_t* codes, int8x16_t a) {
    const int8x16_t quad0 = repeat_quad<2 * kR % 4>(a), quad1 = repeat_quad<2 * kR % 4 + 1>(a);
    for (size_t j = 0; j < kFours; j++) {
      const uint8x16_t row = load_codes(codes + kR * kRow + 16 * j);
      multiply(sums, j, field(row, 0x0f), quad0);
      multiply(sums, j, vshrq_n_s8(as_signed(row), 4), quad1);
    }
  }

  static Columns of_group(size_t blocks, const uint8_t* codes, const int8_t* a, int32_t bias) {
    Wide wide = wide_from(bias);
    while (blocks > 0) {
      Narrow narrow = {};
      size_t count = smaller(blocks, kBlocksInNarrow);
      for (blocks -= count; count > 0; count--, codes += block_bytes(kBits), a += kBlock) {
        prefetch_block(codes, block_bytes(kBits));
        const int8x16_t a0 = vld1q_s8(a), a1 = vld1q_s8(a + 16);
        add<0>(&narrow, codes, a0);
        add<1>(&narrow, codes, a0);
        add<2>(&narrow, codes, a1);
        add<3>(&narrow, codes, a1);
      }
      widen(&wide, narrow);
    }
    return columns_of(wide, 0);
  }
};

}  // namespace

void gemm_q8_q4_f32_1x16x32_neon(const edgekit_gemm_args* args) { decode<Sums>(*args); }

void gemm_q8_q4_f32_4x16x32_neon(const edgekit_gemm_args* args) {
  neon::prefill_narrow(*args, {unpack<LevelsQ4>, block_bytes(4), 0, 1.0f});
}

}  // namespace edgekit::gemm
