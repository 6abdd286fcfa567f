// Eight columns at a time, so that 16-bit sums of four rows stay in registers. Inner loop for each quad: two loads of
// codes, four quads repeated over a vector, sixteen smlal.
#include "gemm/neon/epilogue.h"
#include "gemm/neon/long_multiply.h"

namespace edgekit::gemm {
namespace {

constexpr size_t kHalfFours = kFours / 2;

inline int8x16_t repeat_quad_at(const int8_t* a) {
  int32_t quad;
  __builtin_memcpy(&quad, a, sizeof quad);
  return vreinterpretq_s8_s32(vdupq_n_s32(quad));
}

// A whole group in 16 bits.
struct NarrowSums {
  template <size_t kR>
  static void of_half(const int8_t* a, size_t a_stride, size_t depth, const uint8_t* bytes,
                      int32x4_t (&sum)[kR][kHalfFours]) {
    int16x8_t narrow[kR][2 * kHalfFours];
    for (size_t r = 0; r < kR; r++) {
      for (size_t i = 0; i < 2 * kHalfFours; i++) narrow[r][i] = vdupq_n_s16(0);
    }
    for (size_t p = 0; p < depth; p += 4, bytes += kRow) {
      int8x16_t w[kHalfFours];
      for (size_t j = 0; j < kHalfFours; j++) w[j] = as_signed(load_codes(bytes + 16 * j));
      for (size_t r = 0; r < kR; r++) {
        const int8x16_t quad = repeat_quad_at(a + r * a_stride + p);
        for (size_t j = 0; j < kHalfFours; j++) {
          narrow[r][2 * j] = vmlal_s8(narrow[r][2 * j], vget_low_s8(w[j]), vget_low_s8(quad));
          narrow[r][2 * j + 1] = vmlal_high_s8(narrow[r][2 * j + 1], w[j], quad);
        }
      }
    }
    for (size_t r = 0; r < kR; r++) {
      for (size_t j = 0; j < kHalfFours; j++) {
        sum[r][j] = vpaddq_s32(vpaddlq_s16(narrow[r][2 * j]), vpaddlq_s16(narrow[r][2 * j + 1]));
      }
    }
  }
};

// Two quads in 16 bits, then 32.
struct WideSums {
  template <size_t kR>
  static void of_half(const int8_t* a, size_t a_stride, size_t depth, const uint8_t* bytes,
                      int32x4_t (&sum)[kR][kHalfFours]) {
    int32x4_t wide[kR][2 * kHalfFours];
    for (size_t r = 0; r < kR; r++) {
      for (size_t i = 0; i < 2 * kHalfFours; i++) wide[r][i] = vdupq_n_s32(0);
    }
    for (size_t p = 0; p < depth; p += 8, bytes += 2 * kRow) {
      int8x16_t quad0[kR], quad1[kR];
      for (size_t r = 0; r < kR; r++) {
        quad0[r] = repeat_quad_at(a + r * a_stride + p);
        quad1[r] = repeat_quad_at(a + r * a_stride + p + 4);
      }
      for (size_t j = 0; j < kHalfFours; j++) {
        const int8x16_t w0 = as_signed(load_codes(bytes + 16 * j));
        const int8x16_t w1 = as_signed(load_codes(bytes + kRow + 16 * j));
        for (size_t r = 0; r < kR; r++) {
          int16x8_t low = vmull_s8(vget_low_s8(w0), vget_low_s8(quad0[r]));
          int16x8_t high = vmull_high_s8(w0, quad0[r]);
          low = vmlal_s8(low, vget_low_s8(w1), vget_low_s8(quad1[r]));
          high = vmlal_high_s8(high, w1, quad1[r]);
          wide[r][2 * j] = vpadalq_s16(wide[r][2 * j], low);
          wide[r][2 * j + 1] = vpadalq_s16(wide[r][2 * j + 1], high);
        }
      }
    }
    for (size_t r = 0; r < kR; r++) {
      for (size_t j = 0; j < kHalfFours; j++) sum[r][j] = vpaddq_s32(wide[r][2 * j], wide[r][2 * j + 1]);
    }
  }
};

template <class Sums, size_t kR>
void multiply_rows(const Stretch& s) {
  size_t g = 0;
  for (size_t p = 0; p < s.depth; p += s.group, g++) {
    const size_t depth = smaller(s.group, s.depth - p);
    const uint8_t* bytes = s.bytes + p / 4 * kRow;
    int32x4_t half[2][kR][kHalfFours];
    for (size_t h = 0; h < 2; h++) Sums::of_half(s.a + p, s.a_stride, depth, bytes + h * kRow / 2, half[h]);
    int32x4_t sum[kR][kFours];
    for (size_t r = 0; r < kR; r++) {
      for (size_t j = 0; j < kFours; j++) sum[r][j] = half[j / kHalfFours][r][j % kHalfFours];
    }
    add_group<kR>(s, g, s.first && p == 0, sum);
  }
}

constexpr MultiplyStretch kNarrow[1][4] = {{multiply_rows<NarrowSums, 1>, multiply_rows<NarrowSums, 2>,
                                            multiply_rows<NarrowSums, 3>, multiply_rows<NarrowSums, 4>}};
constexpr MultiplyStretch kWide[1][4] = {{multiply_rows<WideSums, 1>, multiply_rows<WideSums, 2>,
                                          multiply_rows<WideSums, 3>, multiply_rows<WideSums, 4>}};

}  // namespace

void neon::prefill_narrow(const edgekit_gemm_args& args, const Unpacking& unpacking) {
  multiply_tiles(args, unpacking, kNarrow);
}

void neon::prefill_wide(const edgekit_gemm_args& args, const Unpacking& unpacking) {
  multiply_tiles(args, unpacking, kWide);
}

}  // namespace edgekit::gemm
