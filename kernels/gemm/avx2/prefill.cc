// Inner loop for each quad: two loads of eight columns, and for each row one broadcast, two vpmaddubsw and two vpaddw;
// the sums of a block are folded into 32 bits.
#include "gemm/avx2/epilogue.h"
#include "gemm/avx2/short_multiply.h"

namespace edgekit::gemm {
namespace {

// A block of unsigned bytes up to 15 and kR rows of a.
struct Narrow {
  template <size_t kR>
  static void add_block(__m256i (&sum)[kR][kHalves], const int8_t* a, size_t a_stride, const uint8_t* bytes) {
    __m256i narrow[kR][kHalves] = {};
#pragma GCC unroll 1
    for (size_t quad = 0; quad < kQuads; quad++) {
      const __m256i w[kHalves] = {load_codes(bytes + quad * kRow), load_codes(bytes + quad * kRow + 32)};
      for (size_t r = 0; r < kR; r++) {
        const __m256i broadcast = broadcast_quad(a + r * a_stride + 4 * quad);
        for (size_t h = 0; h < kHalves; h++) {
          narrow[r][h] = _mm256_add_epi16(narrow[r][h], _mm256_maddubs_epi16(w[h], broadcast));
        }
      }
    }
    for (size_t r = 0; r < kR; r++) {
      for (size_t h = 0; h < kHalves; h++) sum[r][h] = add_pairs(sum[r][h], narrow[r][h]);
    }
  }
};

// A block of signed bytes.
struct Wide {
  template <size_t kR>
  static void add_block(__m256i (&sum)[kR][kHalves], const int8_t* a, size_t a_stride, const uint8_t* bytes) {
#pragma GCC unroll 1
    for (size_t quad = 0; quad < kQuads; quad++) {
#pragma GCC unroll 2
      for (size_t h = 0; h < kHalves; h++) {
        const __m256i w = load_codes(bytes + quad * kRow + 32 * h);
        const __m256i magnitude = _mm256_abs_epi8(w);
#pragma GCC unroll 4
        for (size_t r = 0; r < kR; r++) {
          sum[r][h] = multiply_signed(sum[r][h], w, magnitude, broadcast_quad(a + r * a_stride + 4 * quad));
        }
      }
    }
  }
};

template <class Format, size_t kR>
void multiply_rows(const Stretch& s) {
  const uint8_t* bytes = s.bytes;
  const int8_t* a = s.a;
  size_t g = 0;
  for (size_t p = 0; p < s.depth; p += s.group, g++) {
    __m256i sum[kR][kHalves] = {};
    const int8_t* end = a + smaller(s.group, s.depth - p);
    for (; a < end; a += kBlock, bytes += kUnpackedBlock) Format::add_block(sum, a, s.a_stride, bytes);
    add_group<kR>(s, g, s.first && p == 0, sum);
  }
}

constexpr MultiplyStretch kNarrow[1][4] = {
    {multiply_rows<Narrow, 1>, multiply_rows<Narrow, 2>, multiply_rows<Narrow, 3>, multiply_rows<Narrow, 4>}};
constexpr MultiplyStretch kWide[1][4] = {
    {multiply_rows<Wide, 1>, multiply_rows<Wide, 2>, multiply_rows<Wide, 3>, multiply_rows<Wide, 4>}};

}  // namespace

void avx2::prefill_narrow(const edgekit_gemm_args& args, const Unpacking& unpacking) {
  multiply_tiles(args, unpacking, kNarrow);
}

void avx2::prefill_wide(const edgekit_gemm_args& args, const Unpacking& unpacking) {
  multiply_tiles(args, unpacking, kWide);
}

}  // namespace edgekit::gemm
