// What q2 and t2 share: the same fields, masked where they are, so that plane p counts 4^p times.
#pragma once

#include "gemm/avx512_vnni/avx512_vnni.h"

namespace edgekit::gemm {
namespace {

struct TwoBitSums {
  static constexpr size_t kBits = 2;
  __m512i planes[2][4] = {};

  void add(const uint8_t* codes, const int8_t* a) {
    for (size_t r = 0; r < 2; r++, a += 16) {
      const __m512i row = load_row(codes + r * kRow);
      planes[r][0] = multiply(planes[r][0], field(row, 0x03), a);
      planes[r][1] = multiply(planes[r][1], field(row, 0x0c), a + 4);
      planes[r][2] = multiply(planes[r][2], field(row, 0x30), a + 8);
      planes[r][3] = multiply(planes[r][3], flipped_field(row, 0xc0, 0x80), a + 12);
    }
  }
  // Sum of (code + 2) * a.
  __m512i biased_total() const {
    __m512i plane[4];
    for (size_t p = 0; p < 4; p++) plane[p] = _mm512_add_epi32(planes[0][p], planes[1][p]);
    return _mm512_add_epi32(_mm512_add_epi32(plane[0], _mm512_srai_epi32(plane[1], 2)),
                            _mm512_add_epi32(_mm512_srai_epi32(plane[2], 4), _mm512_srai_epi32(plane[3], 6)));
  }
};

}  // namespace
}  // namespace edgekit::gemm
