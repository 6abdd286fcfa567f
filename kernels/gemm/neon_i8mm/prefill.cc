// Inner loop for each 8 k: eight loads of two columns each, and for each pair of rows one load and eight smmla.
#include "gemm/neon/epilogue.h"
#include "gemm/neon_i8mm/i8mm.h"

namespace edgekit::gemm {
namespace {

constexpr size_t kTwos = kTile / 2;

// 8 k of rows 2 * pair and 2 * pair + 1; zeros for a row past the last.
template <size_t kR>
inline int8x16_t load_pair(const int8_t* a, size_t a_stride, size_t pair) {
  const int8x8_t first = vld1_s8(a + 2 * pair * a_stride);
  const bool whole = 2 * pair + 1 < kR;
  return vcombine_s8(first, whole ? vld1_s8(a + (2 * pair + 1) * a_stride) : vdup_n_s8(0));
}

template <size_t kR>
void multiply_rows(const Stretch& s) {
  constexpr size_t kPairs = (kR + 1) / 2;
  const uint8_t* bytes = s.bytes;
  const int8_t* a = s.a;
  size_t g = 0;
  for (size_t p = 0; p < s.depth; p += s.group, g++) {
    int32x4_t square[kPairs][kTwos];  // row 2i by columns 2j, 2j + 1, then row 2i + 1
    for (size_t i = 0; i < kPairs; i++) {
      for (size_t j = 0; j < kTwos; j++) square[i][j] = vdupq_n_s32(0);
    }
    const int8_t* end = a + smaller(s.group, s.depth - p);
    for (; a < end; a += 8, bytes += 2 * kRow) {
      int8x16_t rows[kPairs];
      for (size_t i = 0; i < kPairs; i++) rows[i] = load_pair<kR>(a, s.a_stride, i);
      for (size_t j = 0; j < kTwos; j++) {
        const int8x16_t w = as_signed(load_codes(bytes + 16 * j));
        for (size_t i = 0; i < kPairs; i++) square[i][j] = vmmlaq_s32(square[i][j], rows[i], w);
      }
    }
    int32x4_t sum[kR][kFours];
    for (size_t r = 0; r < kR; r++) {
      for (size_t j = 0; j < kFours; j++) {
        const int64x2_t left = vreinterpretq_s64_s32(square[r / 2][2 * j]);
        const int64x2_t right = vreinterpretq_s64_s32(square[r / 2][2 * j + 1]);
        sum[r][j] = vreinterpretq_s32_s64(r % 2 == 0 ? vzip1q_s64(left, right) : vzip2q_s64(left, right));
      }
    }
    add_group<kR>(s, g, s.first && p == 0, sum);
  }
}

constexpr MultiplyStretch kMultiply[1][4] = {
    {multiply_rows<1>, multiply_rows<2>, multiply_rows<3>, multiply_rows<4>}};

}  // namespace

void neon_i8mm::prefill(const edgekit_gemm_args& args, const Unpacking& unpacking) {
  multiply_tiles(args, unpacking, kMultiply);
}

}  // namespace edgekit::gemm
