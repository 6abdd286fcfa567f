// Inner loop for each quad: two loads of eight columns, and for each row one broadcast and two vpdpbusd; 6 x 2
// accumulators.
#include "gemm/avx2/epilogue.h"
#include "gemm/avx_vnni/avx_vnni.h"

namespace edgekit::gemm {
namespace {

template <size_t kR>
void multiply_rows(const Stretch& s) {
  const uint8_t* bytes = s.bytes;
  const int8_t* a = s.a;
  size_t g = 0;
  for (size_t p = 0; p < s.depth; p += s.group, g++) {
    __m256i sum[kR][kHalves] = {};
    const int8_t* end = a + smaller(s.group, s.depth - p);
    for (; a < end; a += 4, bytes += kRow) {
      const __m256i w[kHalves] = {load_codes(bytes), load_codes(bytes + 32)};
      for (size_t r = 0; r < kR; r++) {
        const __m256i quad = broadcast_quad(a + r * s.a_stride);
        for (size_t h = 0; h < kHalves; h++) sum[r][h] = _mm256_dpbusd_avx_epi32(sum[r][h], w[h], quad);
      }
    }
    add_group<kR>(s, g, s.first && p == 0, sum);
  }
}

constexpr MultiplyStretch kMultiply[1][6] = {{multiply_rows<1>, multiply_rows<2>, multiply_rows<3>, multiply_rows<4>,
                                              multiply_rows<5>, multiply_rows<6>}};

}  // namespace

void avx_vnni::prefill(const edgekit_gemm_args& args, const Unpacking& unpacking) {
  multiply_tiles(args, unpacking, kMultiply);
}

}  // namespace edgekit::gemm
