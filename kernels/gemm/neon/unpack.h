// Codes of each format as signed levels, a byte each, in their order [quad][column][4].
#pragma once

#include "gemm/neon/vectors.h"

namespace edgekit::gemm {
namespace {

// Calls store(quad, j, levels) for every quad of a block and every vector j of its row.

struct LevelsQ8 {
  static constexpr size_t kBits = 8;
  template <class Store>
  static void of_block(const uint8_t* codes, const Store& store) {
    for (size_t quad = 0; quad < kQuads; quad++) {
      for (size_t j = 0; j < kFours; j++) store(quad, j, as_signed(load_codes(codes + quad * kRow + 16 * j)));
    }
  }
};

struct LevelsQ4 {
  static constexpr size_t kBits = 4;
  template <class Store>
  static void of_block(const uint8_t* codes, const Store& store) {
    for (size_t r = 0; r < 4; r++) {
      for (size_t j = 0; j < kFours; j++) {
        const uint8x16_t row = load_codes(codes + r * kRow + 16 * j);
        store(2 * r, j, vsubq_s8(field(row, 0x0f), vdupq_n_s8(8)));
        store(2 * r + 1, j, vshrq_n_s8(as_signed(row), 4));
      }
    }
  }
};

// Quads 6 and 7 of q3, put together in bits 7:5: bits 7:6 of row A or B, and bit 7 or 6 of row C.
inline int8x16_t quad6(uint8x16_t a, uint8x16_t c) { return as_signed(vsriq_n_u8(a, c, 2)); }
inline int8x16_t quad7(uint8x16_t b, uint8x16_t c) { return as_signed(vsriq_n_u8(b, vshlq_n_u8(c, 1), 2)); }

struct LevelsQ3 {
  static constexpr size_t kBits = 3;
  template <class Store>
  static void of_block(const uint8_t* codes, const Store& store) {
    for (size_t j = 0; j < kFours; j++) {
      uint8x16_t rows[3];
      for (size_t r = 0; r < 3; r++) {
        rows[r] = load_codes(codes + r * kRow + 16 * j);
        store(r, j, vsubq_s8(field(rows[r], 7), vdupq_n_s8(4)));
        store(r + 3, j, vsubq_s8(field(vshrq_n_u8(rows[r], 3), 7), vdupq_n_s8(4)));
      }
      store(6, j, vshrq_n_s8(quad6(rows[0], rows[2]), 5));
      store(7, j, vshrq_n_s8(quad7(rows[1], rows[2]), 5));
    }
  }
};

struct LevelsT2 {
  static constexpr size_t kBits = 2;
  template <class Store>
  static void of_block(const uint8_t* codes, const Store& store) {
    for (size_t r = 0; r < 2; r++) {
      for (size_t j = 0; j < kFours; j++) {
        const uint8x16_t row = load_codes(codes + r * kRow + 16 * j);
        store(4 * r, j, vsubq_s8(field(row, 3), vdupq_n_s8(2)));
        store(4 * r + 1, j, vsubq_s8(field(vshrq_n_u8(row, 2), 3), vdupq_n_s8(2)));
        store(4 * r + 2, j, vsubq_s8(field(vshrq_n_u8(row, 4), 3), vdupq_n_s8(2)));
        store(4 * r + 3, j, vshrq_n_s8(as_signed(row), 6));
      }
    }
  }
};

// A level of q2 is 2 * code + 1.
struct LevelsQ2 {
  static constexpr size_t kBits = 2;
  template <class Store>
  static void of_block(const uint8_t* codes, const Store& store) {
    LevelsT2::of_block(codes, [&](size_t quad, size_t j, int8x16_t code) {
      store(quad, j, vaddq_s8(vaddq_s8(code, code), vdupq_n_s8(1)));
    });
  }
};

template <class Levels>
void unpack(size_t blocks, const uint8_t* codes, uint8_t* bytes) {
  for (; blocks > 0; blocks--, codes += block_bytes(Levels::kBits), bytes += kUnpackedBlock) {
    Levels::of_block(codes, [&](size_t quad, size_t j, int8x16_t levels) {
      vst1q_u8(bytes + quad * kRow + 16 * j, vreinterpretq_u8_s8(levels));
    });
  }
}

}  // namespace
}  // namespace edgekit::gemm
