// Inner loop: four loads of a row of 16 columns and sixteen sdot by lane for each quad; 4 x 4 accumulators.
#include "gemm/neon_dotprod/dotprod.h"
#include "gemm/neon/epilogue.h"

namespace edgekit::gemm {
namespace {

template <int kLane, size_t kR>
inline void multiply_quad(int32x4_t (&sum)[kR][kFours], const uint8_t* bytes, const int8x16_t (&a)[kR]) {
  int8x16_t w[kFours];
  for (size_t j = 0; j < kFours; j++) w[j] = as_signed(load_codes(bytes + kLane * kRow + 16 * j));
  for (size_t r = 0; r < kR; r++) {
    for (size_t j = 0; j < kFours; j++) sum[r][j] = dot<kLane>(sum[r][j], w[j], a[r]);
  }
}

template <size_t kR>
void multiply_rows(const Stretch& s) {
  const uint8_t* bytes = s.bytes;
  const int8_t* from = s.a;
  size_t g = 0;
  for (size_t p = 0; p < s.depth; p += s.group, g++) {
    int32x4_t sum[kR][kFours];
    for (size_t r = 0; r < kR; r++) {
      for (size_t j = 0; j < kFours; j++) sum[r][j] = vdupq_n_s32(0);
    }
    const int8_t* end = from + smaller(s.group, s.depth - p);
    for (; from < end; from += 16, bytes += 4 * kRow) {
      int8x16_t a[kR];
      for (size_t r = 0; r < kR; r++) a[r] = vld1q_s8(from + r * s.a_stride);
      multiply_quad<0>(sum, bytes, a);
      multiply_quad<1>(sum, bytes, a);
      multiply_quad<2>(sum, bytes, a);
      multiply_quad<3>(sum, bytes, a);
    }
    add_group<kR>(s, g, s.first && p == 0, sum);
  }
}

constexpr MultiplyStretch kMultiply[1][4] = {
    {multiply_rows<1>, multiply_rows<2>, multiply_rows<3>, multiply_rows<4>}};

}  // namespace

void neon_dotprod::prefill(const edgekit_gemm_args& args, const Unpacking& unpacking) {
  multiply_tiles(args, unpacking, kMultiply);
}

}  // namespace edgekit::gemm
