// Codes of each format as unsigned bytes, level + bias, in their order [quad][column][4].
#pragma once

#include "gemm/avx2/vectors.h"

namespace edgekit::gemm {
namespace {

// Calls store(quad, h, bytes) for every quad of a block and every half h of its row.

struct BytesQ8 {
  static constexpr size_t kBits = 8;
  static constexpr int32_t kBias = 128;
  template <class Store>
  static void of_block(const uint8_t* codes, const Store& store) {
    for (size_t quad = 0; quad < kQuads; quad++) {
      for (size_t h = 0; h < kHalves; h++) {
        store(quad, h, _mm256_xor_si256(load_codes(codes + quad * kRow + 32 * h), bytes_of(0x80)));
      }
    }
  }
};

struct BytesQ4 {
  static constexpr size_t kBits = 4;
  static constexpr int32_t kBias = 8;
  template <class Store>
  static void of_block(const uint8_t* codes, const Store& store) {
    for (size_t r = 0; r < 4; r++) {
      for (size_t h = 0; h < kHalves; h++) {
        const __m256i row = load_codes(codes + r * kRow + 32 * h);
        store(2 * r, h, field(row, 0x0f));
        store(2 * r + 1, h, flipped_field(_mm256_srli_epi16(row, 4), 0x0f, 0x08));
      }
    }
  }
};

// Quads 6 and 7 of q3 from bits 7:6 of row A or B and bit 7 or 6 of row C.
inline __m256i quad6(__m256i a, __m256i c) {
  const __m256i high = field(_mm256_srli_epi16(a, 5), 0x06), low = field(_mm256_srli_epi16(c, 7), 0x01);
  return _mm256_xor_si256(_mm256_or_si256(high, low), bytes_of(0x04));
}
inline __m256i quad7(__m256i b, __m256i c) { return quad6(b, _mm256_slli_epi16(c, 1)); }

struct BytesQ3 {
  static constexpr size_t kBits = 3;
  static constexpr int32_t kBias = 4;
  template <class Store>
  static void of_block(const uint8_t* codes, const Store& store) {
    for (size_t h = 0; h < kHalves; h++) {
      __m256i rows[3];
      for (size_t r = 0; r < 3; r++) {
        rows[r] = load_codes(codes + r * kRow + 32 * h);
        store(r, h, field(rows[r], 0x07));
        store(r + 3, h, field(_mm256_srli_epi16(rows[r], 3), 0x07));
      }
      store(6, h, quad6(rows[0], rows[2]));
      store(7, h, quad7(rows[1], rows[2]));
    }
  }
};

struct BytesT2 {
  static constexpr size_t kBits = 2;
  static constexpr int32_t kBias = 2;
  template <class Store>
  static void of_block(const uint8_t* codes, const Store& store) {
    for (size_t r = 0; r < 2; r++) {
      for (size_t h = 0; h < kHalves; h++) {
        const __m256i row = load_codes(codes + r * kRow + 32 * h);
        store(4 * r, h, field(row, 0x03));
        store(4 * r + 1, h, field(_mm256_srli_epi16(row, 2), 0x03));
        store(4 * r + 2, h, field(_mm256_srli_epi16(row, 4), 0x03));
        store(4 * r + 3, h, flipped_field(_mm256_srli_epi16(row, 6), 0x03, 0x02));
      }
    }
  }
};

// A level of q2 is 2 * code + 1, its byte 2 * (code + 2).
struct BytesQ2 {
  static constexpr size_t kBits = 2;
  static constexpr int32_t kBias = 3;
  template <class Store>
  static void of_block(const uint8_t* codes, const Store& store) {
    BytesT2::of_block(codes, [&](size_t quad, size_t h, __m256i bytes) {
      store(quad, h, _mm256_add_epi8(bytes, bytes));
    });
  }
};

template <class Bytes>
void unpack(size_t blocks, const uint8_t* codes, uint8_t* bytes) {
  for (; blocks > 0; blocks--, codes += block_bytes(Bytes::kBits), bytes += kUnpackedBlock) {
    Bytes::of_block(codes, [&](size_t quad, size_t h, __m256i v) { store_bytes(bytes + quad * kRow + 32 * h, v); });
  }
}

}  // namespace
}  // namespace edgekit::gemm
