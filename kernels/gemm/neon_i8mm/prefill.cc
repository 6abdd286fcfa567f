// Inner loop for each 8 k: one load of half a tile's columns, one for each pair of rows, and four smmla for each pair.
// Sums and results are squares, row 2i by columns 2j, 2j + 1, then row 2i + 1; eight columns at a time, so they stay
// in registers.
#include "gemm/neon/sums.h"
#include "gemm/neon_i8mm/i8mm.h"

namespace edgekit::gemm {
namespace {

constexpr size_t kHalfTwos = kHalf / 2;

// [w0, w1, w0, w1] for each two columns.
struct ScaleOfSquare {
  static constexpr size_t kFloats = 2 * kTile;
  static void unpack(const uint16_t* scales, float factor, float* floats) {
    for (size_t i = 0; i < kTile; i += 2, floats += 4) {
      floats[0] = floats[2] = factor * from_bf16(scales[i]);
      floats[1] = floats[3] = factor * from_bf16(scales[i + 1]);
    }
  }
};

// Rows of a stretch side by side, [8 k][pair][row 2i, row 2i + 1][8], and their scales [a0, a0, a1, a1]: put together
// for the first half tile, read by all. A row past the last counts as zeros.
template <size_t kPairs>
struct Rows {
  int8_t codes[kLongDepth / 8][kPairs][16];
  float scales[kMostLongGroups][kPairs][4];
};

// A block of rows 2i and 2i + 1 by integer registers.
template <size_t kPairs>
inline void join_by_words(const int8_t* even, const int8_t* odd, int8_t* codes) {
  uint64_t first[kBlock / 8], second[kBlock / 8] = {};
  __builtin_memcpy(first, even, kBlock);
  if (odd != nullptr) __builtin_memcpy(second, odd, kBlock);
#pragma GCC unroll 4
  for (size_t q = 0; q < kBlock / 8; q++) {
    __builtin_memcpy(codes + 16 * kPairs * q, first + q, 8);
    __builtin_memcpy(codes + 16 * kPairs * q + 8, second + q, 8);
  }
}

// The same by vector registers.
template <size_t kPairs>
inline void join_by_vectors(const int8_t* even, const int8_t* odd, int8_t* codes) {
#pragma GCC unroll 2
  for (size_t q = 0; q < kBlock / 8; q += 2) {
    const int64x2_t first = vreinterpretq_s64_s8(vld1q_s8(even + 8 * q));
    const int64x2_t second = vreinterpretq_s64_s8(vld1q_s8(odd + 8 * q));
    vst1q_s8(codes + 16 * kPairs * q, vreinterpretq_s8_s64(vzip1q_s64(first, second)));
    vst1q_s8(codes + 16 * kPairs * (q + 1), vreinterpretq_s8_s64(vzip2q_s64(first, second)));
  }
}

// With four rows one pair goes each way: integer pipes or vector pipes alone would be the bottleneck.
template <size_t kR>
inline void join_rows(const int8_t* a, size_t a_stride, int8_t* codes) {
  constexpr size_t kPairs = (kR + 1) / 2;
  join_by_words<kPairs>(a, kR > 1 ? a + a_stride : nullptr, codes);
  if (kR == 3) join_by_words<kPairs>(a + 2 * a_stride, nullptr, codes + 16);
  if (kR == 4) join_by_vectors<kPairs>(a + 2 * a_stride, a + 3 * a_stride, codes + 16);
}

template <size_t kR>
inline void load_squares(const float* c, size_t c_stride, float32x4_t (&total)[(kR + 1) / 2][kHalfTwos]) {
  for (size_t r = 0; r < kR; r += 2) {
    for (size_t j = 0; j < kHalfTwos; j += 2) {
      const float64x2_t even = vreinterpretq_f64_f32(vld1q_f32(c + r * c_stride + 2 * j));
      const float64x2_t odd = r + 1 < kR ? vreinterpretq_f64_f32(vld1q_f32(c + (r + 1) * c_stride + 2 * j)) : even;
      total[r / 2][j] = vreinterpretq_f32_f64(vzip1q_f64(even, odd));
      total[r / 2][j + 1] = vreinterpretq_f32_f64(vzip2q_f64(even, odd));
    }
  }
}

template <size_t kR>
inline void store_squares(const float32x4_t (&total)[(kR + 1) / 2][kHalfTwos], float* c, size_t c_stride) {
  for (size_t r = 0; r < kR; r++) {
    for (size_t j = 0; j < kHalfTwos; j += 2) {
      const float64x2_t left = vreinterpretq_f64_f32(total[r / 2][j]);
      const float64x2_t right = vreinterpretq_f64_f32(total[r / 2][j + 1]);
      vst1q_f32(c + r * c_stride + 2 * j,
                vreinterpretq_f32_f64(r % 2 == 0 ? vzip1q_f64(left, right) : vzip2q_f64(left, right)));
    }
  }
}

template <size_t kR, size_t kTiles>
void multiply_rows(const Stretch& s) {
  constexpr size_t kPairs = (kR + 1) / 2;
  Rows<kPairs> rows;
  const size_t depth = s.depth, group = s.group, a_stride = s.a_stride, c_stride = s.c_stride;
  const bool fresh = s.first;
  const int8_t* const end = s.a + depth;
  float* c = s.c;
  for (size_t half = 0; half < 2 * kTiles; half++, c += kHalf) {
    const int8_t* tile = reinterpret_cast<const int8_t*>(s.bytes) + half / 2 * kLongDepth * kTile;
    const int8_t* w = tile + half % 2 * depth * kHalf;
    const float* w_scale = s.w_scale + half / 2 * kMostLongGroups * 2 * kTile + half % 2 * 2 * kHalf;
    float32x4_t total[kPairs][kHalfTwos] = {};
    if (!fresh) load_squares<kR>(c, c_stride, total);
    const int8_t* a = s.a;
    int8_t* codes = rows.codes[0][0];
    for (size_t g = 0; a < end; g++, w_scale += 2 * kTile) {
      if (half == 0) {
        for (size_t r = 0; r < kR; r++) {
          float* scale = rows.scales[g][r / 2] + r % 2 * 2;
          scale[0] = scale[1] = s.a_scale[r * s.groups + g];
          if (r == kR - 1 && r % 2 == 0) scale[2] = scale[3] = 0;
        }
      }
      int32x4_t sum[kPairs][kHalfTwos];
      for (size_t i = 0; i < kPairs; i++) {
        for (size_t j = 0; j < kHalfTwos; j++) sum[i][j] = start_of_sum();
      }
      const int8_t* group_end = a + smaller(group, static_cast<size_t>(end - a));
      do {
        if (half == 0) join_rows<kR>(a, a_stride, codes);
        a += kBlock;
#pragma GCC unroll 4
        for (size_t q = 0; q < kBlock / 8; q++) {
          int8x16_t pair[kPairs];
          for (size_t i = 0; i < kPairs; i++) pair[i] = vld1q_s8(codes + 16 * i);
          const int8x16x4_t columns = vld1q_s8_x4(w);
          for (size_t j = 0; j < kHalfTwos; j++) {
            for (size_t i = 0; i < kPairs; i++) sum[i][j] = vmmlaq_s32(sum[i][j], pair[i], columns.val[j]);
          }
          codes += 16 * kPairs;
          w += 8 * kHalf;
        }
      } while (a < group_end);
      const float32x4_t start = vreinterpretq_f32_s32(start_of_sum());
      for (size_t j = 0; j < kHalfTwos; j++) {
        for (size_t i = 0; i < kPairs; i++) {
          const float32x4_t scale = vmulq_f32(vld1q_f32(w_scale + 4 * j), vld1q_f32(rows.scales[g][i]));
          total[i][j] = vfmaq_f32(total[i][j], float_of_sum(sum[i][j], start), scale);
        }
      }
    }
    store_squares<kR>(total, c, c_stride);
  }
}

constexpr MultiplyStretch kMultiply[2][4] = {
    {multiply_rows<1, 1>, multiply_rows<2, 1>, multiply_rows<3, 1>, multiply_rows<4, 1>},
    {multiply_rows<1, 2>, multiply_rows<2, 2>, multiply_rows<3, 2>, multiply_rows<4, 2>}};

}  // namespace

void neon_i8mm::prefill(const edgekit_gemm_args& args, const Unpacking& unpacking) {
  multiply_tiles<kLongDepth, ScaleOfSquare>(args, unpacking, kMultiply);
}

}  // namespace edgekit::gemm
