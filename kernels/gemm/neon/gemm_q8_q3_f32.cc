#include "gemm/kernels.h"
#include "gemm/neon/long_multiply.h"
#include "gemm/neon/unpack.h"

namespace edgekit::gemm {
namespace {

// A group of 128 adds up to 32 * 7 * 127 = 28448 to a 16-bit sum, so it fits whole.
struct Sums {
  static constexpr size_t kBits = 3;
  static constexpr bool kHalved = false;
  static constexpr int8_t kBias[kQuads] = {-4, -4, -4, -4, -4, -4, 0, 0};

  static Columns of_group(size_t blocks, const uint8_t* codes, const int8_t* a, int32_t bias) {
    Narrow sums = {};
    do {
      prefetch_block(codes, block_bytes(kBits));
      const int8x16_t a0 = vld1q_s8(a), a1 = vld1q_s8(a + 16);
#pragma GCC unroll 4
      for (size_t j = 0; j < kFours; j++) {
        const uint8x16_t ra = load_codes(codes + 16 * j);
        const uint8x16_t rb = load_codes(codes + kRow + 16 * j);
        const uint8x16_t rc = load_codes(codes + 2 * kRow + 16 * j);
        multiply(&sums, j, field(ra, 7), repeat_quad<0>(a0));
        multiply(&sums, j, field(rb, 7), repeat_quad<1>(a0));
        multiply(&sums, j, field(rc, 7), repeat_quad<2>(a0));
        multiply(&sums, j, field(vshrq_n_u8(ra, 3), 7), repeat_quad<3>(a0));
        multiply(&sums, j, field(vshrq_n_u8(rb, 3), 7), repeat_quad<0>(a1));
        multiply(&sums, j, field(vshrq_n_u8(rc, 3), 7), repeat_quad<1>(a1));
        multiply(&sums, j, vshrq_n_s8(quad6(ra, rc), 5), repeat_quad<2>(a1));
        multiply(&sums, j, vshrq_n_s8(quad7(rb, rc), 5), repeat_quad<3>(a1));
      }
      codes += block_bytes(kBits);
      a += kBlock;
    } while (--blocks > 0);
    Wide wide = {};
    widen(&wide, sums);
    return columns_of(wide, bias);
  }
};

}  // namespace

void gemm_q8_q3_f32_1x16x32_neon(const edgekit_gemm_args* args) { decode<Sums>(*args); }

void gemm_q8_q3_f32_4x16x32_neon(const edgekit_gemm_args* args) {
  neon::prefill_narrow(*args, {unpack<LevelsQ3>, block_bytes(3), 0, 1.0f});
}

}  // namespace edgekit::gemm
