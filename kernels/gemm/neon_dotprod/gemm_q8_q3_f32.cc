#include "gemm/kernels.h"
#include "gemm/neon_dotprod/dotprod.h"

namespace edgekit::gemm {
namespace {

// Fields are masked where they are: bits 0..2 are code + 4, bits 3..5 are 8 * (code + 4), quads 6 and 7 are 32 * code.
struct Sums {
  static constexpr size_t kBits = 3;
  static constexpr bool kHalved = false;
  static constexpr int8_t kBias[kQuads] = {-4, -4, -4, -4, -4, -4, 0, 0};

  static Columns of_group(size_t blocks, const uint8_t* codes, const int8_t* a, int32_t bias) {
    Columns ones = all_columns(bias), eights = {}, high = {};
    do {
      prefetch_block(codes, block_bytes(kBits));
      const int8x16_t a0 = vld1q_s8(a), a1 = vld1q_s8(a + 16);
      for (size_t j = 0; j < kFours; j++) {
        const uint8x16_t ra = load_codes(codes + 16 * j);
        const uint8x16_t rb = load_codes(codes + kRow + 16 * j);
        const uint8x16_t rc = load_codes(codes + 2 * kRow + 16 * j);
        ones.v[j] = dot<0>(ones.v[j], field(ra, 0x07), a0);
        eights.v[j] = dot<3>(eights.v[j], field(ra, 0x38), a0);
        high.v[j] = dot<2>(high.v[j], field(vreinterpretq_u8_s8(quad6(ra, rc)), 0xe0), a1);
        ones.v[j] = dot<1>(ones.v[j], field(rb, 0x07), a0);
        eights.v[j] = dot<0>(eights.v[j], field(rb, 0x38), a1);
        high.v[j] = dot<3>(high.v[j], field(vreinterpretq_u8_s8(quad7(rb, rc)), 0xe0), a1);
        ones.v[j] = dot<2>(ones.v[j], field(rc, 0x07), a0);
        eights.v[j] = dot<1>(eights.v[j], field(rc, 0x38), a1);
      }
      codes += block_bytes(kBits);
      a += kBlock;
    } while (--blocks > 0);
    for (size_t j = 0; j < kFours; j++) {
      ones.v[j] = vsraq_n_s32(vsraq_n_s32(ones.v[j], eights.v[j], 3), high.v[j], 5);
    }
    return ones;
  }
};

}  // namespace

void gemm_q8_q3_f32_1x16x32_neon_dotprod(const edgekit_gemm_args* args) { decode<Sums, kFloatStart>(*args); }

void gemm_q8_q3_f32_4x16x32_neon_dotprod(const edgekit_gemm_args* args) {
  neon_dotprod::prefill(*args, {unpack_halves<LevelsQ3>, block_bytes(3), 0, 1.0f});
}

}  // namespace edgekit::gemm
