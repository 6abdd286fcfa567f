// Inner loop for each two quads: one load of half a tile and sixteen sdot by lane. Eight columns at a time, so
// that sums and results of four rows stay in registers; all sixteen for one or two rows.
#include "gemm/neon/sums.h"
#include "gemm/neon_dotprod/dotprod.h"

namespace edgekit::gemm {
namespace {

constexpr size_t kHalfFours = kFours / 2;

// sum += 8 columns times quads kLane and kLane + 1 of each a.
template <int kLane, size_t kR>
inline void add_quads(int32x4_t (&sum)[kR][kHalfFours], const int8x16_t (&a)[kR], const int8_t* bytes) {
  const int8x16x4_t w = vld1q_s8_x4(bytes);
  for (size_t r = 0; r < kR; r++) {
    for (size_t j = 0; j < kHalfFours; j++) sum[r][j] = dot<kLane>(sum[r][j], w.val[j], a[r]);
  }
  for (size_t r = 0; r < kR; r++) {
    for (size_t j = 0; j < kHalfFours; j++) sum[r][j] = dot<kLane + 1>(sum[r][j], w.val[kHalfFours + j], a[r]);
  }
}

template <size_t kR, size_t kTiles>
void multiply_rows(const Stretch& s) {
  constexpr size_t kHalves = kR <= 2 ? 2 : 1;
  static const float zeros[kTiles * kTile] = {};
  const size_t depth = s.depth, group = s.group, c_stride = s.c_stride;
  float* c = s.c;
  const float* before = s.first ? zeros : c;
  const size_t before_stride = s.first ? 0 : c_stride;
  const int8_t* a[kR];
  const float* a_scale[kR];
  for (size_t r = 0; r < kR; r++) {
    a[r] = s.a + r * s.a_stride;
    a_scale[r] = s.a_scale + r * s.groups;
  }
  const int8_t* const end = s.a + depth;
  for (size_t tile = 0; tile < kTiles; tile++) {
    const int8_t* w[kHalves];
    for (size_t h = 0; h < kHalves; h++) {
      w[h] = reinterpret_cast<const int8_t*>(s.bytes) + tile * kLongDepth * kTile + h * depth * kHalf;
    }
    const float* w_scale = s.w_scale + tile * kMostLongGroups * kTile;
    for (size_t first = 0; first < 2; first += kHalves) {
      float32x4_t total[kHalves][kR][kHalfFours];
      for (size_t h = 0; h < kHalves; h++) {
        for (size_t r = 0; r < kR; r++) {
          for (size_t j = 0; j < kHalfFours; j++) {
            total[h][r][j] = vld1q_f32(before + r * before_stride + h * kHalf + 4 * j);
          }
        }
      }
      for (size_t g = 0; a[0] < end; g++) {
        int32x4_t sum[kHalves][kR][kHalfFours];
        for (size_t h = 0; h < kHalves; h++) {
          for (size_t r = 0; r < kR; r++) {
            for (size_t j = 0; j < kHalfFours; j++) sum[h][r][j] = start_of_sum();
          }
        }
        const int8_t* group_end = a[0] + smaller(group, static_cast<size_t>(end - a[0]));
        do {
          int8x16_t low[kR], high[kR];
          for (size_t r = 0; r < kR; r++) {
            const int8x16x2_t block = vld1q_s8_x2(a[r]);
            low[r] = block.val[0], high[r] = block.val[1];
            a[r] += kBlock;
          }
          for (size_t h = 0; h < kHalves; h++) {
            add_quads<0>(sum[h], low, w[h]);
            add_quads<2>(sum[h], low, w[h] + 8 * kHalf);
            add_quads<0>(sum[h], high, w[h] + 16 * kHalf);
            add_quads<2>(sum[h], high, w[h] + 24 * kHalf);
            w[h] += kBlock * kHalf;
          }
        } while (a[0] < group_end);
        const float32x4_t start = vreinterpretq_f32_s32(start_of_sum());
        for (size_t h = 0; h < kHalves; h++) {
          for (size_t r = 0; r < kR; r++) {
            for (size_t j = 0; j < kHalfFours; j++) {
              const float32x4_t scale = vmulq_n_f32(vld1q_f32(w_scale + g * kTile + h * kHalf + 4 * j), a_scale[r][g]);
              total[h][r][j] = vfmaq_f32(total[h][r][j], float_of_sum(sum[h][r][j], start), scale);
            }
          }
        }
      }
      for (size_t r = 0; r < kR; r++) {
        a[r] -= depth;
        for (size_t h = 0; h < kHalves; h++) {
          for (size_t j = 0; j < kHalfFours; j++) vst1q_f32(c + r * c_stride + h * kHalf + 4 * j, total[h][r][j]);
        }
      }
      before += kHalves * kHalf;
      c += kHalves * kHalf;
      w_scale += kHalves * kHalf;
    }
  }
}

constexpr MultiplyStretch kMultiply[2][4] = {
    {multiply_rows<1, 1>, multiply_rows<2, 1>, multiply_rows<3, 1>, multiply_rows<4, 1>},
    {multiply_rows<1, 2>, multiply_rows<2, 2>, multiply_rows<3, 2>, multiply_rows<4, 2>}};

}  // namespace

void neon_dotprod::prefill(const edgekit_gemm_args& args, const Unpacking& unpacking) {
  multiply_tiles<kLongDepth>(args, unpacking, kMultiply);
}

}  // namespace edgekit::gemm
