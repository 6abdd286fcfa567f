// Inner loop: one broadcast load and two vpdpbusd for each row, quad and pair of tiles; 7 x 2 accumulators.
#include "gemm/avx512_vnni/avx512_vnni.h"
#include "gemm/prefill.h"

namespace edgekit::gemm {
namespace {

template <size_t kR, size_t kT>
void multiply_rows(const Stretch& s) {
  __m512 c[kR][kT];
  for (size_t r = 0; r < kR; r++) {
    for (size_t t = 0; t < kT; t++) {
      c[r][t] = s.first ? _mm512_setzero_ps() : _mm512_loadu_ps(s.c + r * s.c_stride + t * kTile);
    }
  }
  const uint8_t* bytes = s.bytes;
  const int8_t* a = s.a;
  size_t g = 0;
  for (size_t p = 0; p < s.depth; p += s.group, g++) {
    __m512i sum[kR][kT];
    for (size_t r = 0; r < kR; r++) {
      const __m512i start = _mm512_set1_epi32(-s.bias * s.a_sum[r * s.groups + g]);
      for (size_t t = 0; t < kT; t++) sum[r][t] = start;
    }
    const int8_t* end = a + smaller(s.group, s.depth - p);
    for (; a < end; a += 4, bytes += kRow) {
      __m512i w[kT];
      for (size_t t = 0; t < kT; t++) w[t] = load_row(bytes + t * kDepth * kTile);
      for (size_t r = 0; r < kR; r++) {
        const __m512i quad = broadcast_quad(a + r * s.a_stride);
        for (size_t t = 0; t < kT; t++) sum[r][t] = _mm512_dpbusd_epi32(sum[r][t], w[t], quad);
      }
    }
    for (size_t t = 0; t < kT; t++) {
      const __m512 w_scale = _mm512_load_ps(s.w_scale + (t * kMostGroups + g) * kTile);
      for (size_t r = 0; r < kR; r++) {
        const __m512 scale = _mm512_mul_ps(_mm512_set1_ps(s.a_scale[r * s.groups + g]), w_scale);
        c[r][t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[r][t]), scale, c[r][t]);
      }
    }
  }
  for (size_t r = 0; r < kR; r++) {
    for (size_t t = 0; t < kT; t++) _mm512_storeu_ps(s.c + r * s.c_stride + t * kTile, c[r][t]);
  }
}

constexpr MultiplyStretch kMultiply[2][7] = {
    {multiply_rows<1, 1>, multiply_rows<2, 1>, multiply_rows<3, 1>, multiply_rows<4, 1>, multiply_rows<5, 1>,
     multiply_rows<6, 1>, multiply_rows<7, 1>},
    {multiply_rows<1, 2>, multiply_rows<2, 2>, multiply_rows<3, 2>, multiply_rows<4, 2>, multiply_rows<5, 2>,
     multiply_rows<6, 2>, multiply_rows<7, 2>}};

}  // namespace

void avx512_vnni::prefill(const edgekit_gemm_args& args, const Unpacking& unpacking) {
  multiply_tiles(args, unpacking, kMultiply);
}

}  // namespace edgekit::gemm
