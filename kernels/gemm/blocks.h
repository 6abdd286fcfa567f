// A block, 32 k of one tile, in each packed format and as plain codes [quad][column][4], one int8 each. Slow and
// plainly right: packing, embedding rows and the scalar kernels use it; edgekit/gemm.h describes the formats.
#pragma once

#include "gemm/layout.h"

namespace edgekit::gemm {
namespace {

struct Q8 {
  static constexpr size_t kBits = 8;
  static constexpr int kDoubled = 0;  // value = code
  static void pack(const int8_t* codes, uint8_t* block) {
    for (size_t i = 0; i < kUnpackedBlock; i++) block[i] = static_cast<uint8_t>(codes[i]);
  }
  static void unpack(const uint8_t* block, int8_t* codes) {
    for (size_t i = 0; i < kUnpackedBlock; i++) codes[i] = static_cast<int8_t>(block[i]);
  }
};

// A field of `kBits` bits in two's complement, given as an unsigned number, is the code after this.
template <int kBits>
inline int8_t signed_field(int field) {
  constexpr int kHalf = 1 << (kBits - 1);
  return static_cast<int8_t>((field ^ kHalf) - kHalf);
}

struct Q4 {
  static constexpr size_t kBits = 4;
  static constexpr int kDoubled = 0;
  static void pack(const int8_t* codes, uint8_t* block) {
    for (size_t row = 0; row < 4; row++, codes += 2 * kRow, block += kRow) {
      for (size_t i = 0; i < kRow; i++) {
        block[i] = static_cast<uint8_t>(((codes[i] + 8) & 15) | codes[kRow + i] * 16);
      }
    }
  }
  static void unpack(const uint8_t* block, int8_t* codes) {
    for (size_t row = 0; row < 4; row++, codes += 2 * kRow, block += kRow) {
      for (size_t i = 0; i < kRow; i++) {
        codes[i] = static_cast<int8_t>((block[i] & 15) - 8);
        codes[kRow + i] = signed_field<4>(block[i] >> 4);
      }
    }
  }
};

struct Q3 {
  static constexpr size_t kBits = 3;
  static constexpr int kDoubled = 0;
  static void pack(const int8_t* codes, uint8_t* block) {
    for (size_t i = 0; i < kRow; i++) {
      const auto code = [&](size_t quad) { return codes[quad * kRow + i]; };
      const int quad6 = code(6) & 7, quad7 = code(7) & 7;
      const auto fields = [&](size_t low) { return ((code(low) + 4) & 7) | ((code(low + 3) + 4) & 7) << 3; };
      block[i] = static_cast<uint8_t>(fields(0) | (quad6 >> 1) << 6);
      block[kRow + i] = static_cast<uint8_t>(fields(1) | (quad7 >> 1) << 6);
      block[2 * kRow + i] = static_cast<uint8_t>(fields(2) | (quad6 & 1) << 7 | (quad7 & 1) << 6);
    }
  }
  static void unpack(const uint8_t* block, int8_t* codes) {
    for (size_t i = 0; i < kRow; i++) {
      const int a = block[i], b = block[kRow + i], c = block[2 * kRow + i];
      codes[i] = static_cast<int8_t>((a & 7) - 4);
      codes[kRow + i] = static_cast<int8_t>((b & 7) - 4);
      codes[2 * kRow + i] = static_cast<int8_t>((c & 7) - 4);
      codes[3 * kRow + i] = static_cast<int8_t>((a >> 3 & 7) - 4);
      codes[4 * kRow + i] = static_cast<int8_t>((b >> 3 & 7) - 4);
      codes[5 * kRow + i] = static_cast<int8_t>((c >> 3 & 7) - 4);
      codes[6 * kRow + i] = signed_field<3>((a >> 6) << 1 | c >> 7);
      codes[7 * kRow + i] = signed_field<3>((b >> 6) << 1 | (c >> 6 & 1));
    }
  }
};

struct T2 {
  static constexpr size_t kBits = 2;
  static constexpr int kDoubled = 0;
  static void pack(const int8_t* codes, uint8_t* block) {
    for (size_t row = 0; row < 2; row++, codes += 4 * kRow, block += kRow) {
      for (size_t i = 0; i < kRow; i++) {
        const auto field = [&](size_t quad) { return (codes[quad * kRow + i] + 2) & 3; };
        block[i] = static_cast<uint8_t>(field(0) | field(1) << 2 | field(2) << 4 | codes[3 * kRow + i] * 64);
      }
    }
  }
  static void unpack(const uint8_t* block, int8_t* codes) {
    for (size_t row = 0; row < 2; row++, codes += 4 * kRow, block += kRow) {
      for (size_t i = 0; i < kRow; i++) {
        codes[i] = static_cast<int8_t>((block[i] & 3) - 2);
        codes[kRow + i] = static_cast<int8_t>((block[i] >> 2 & 3) - 2);
        codes[2 * kRow + i] = static_cast<int8_t>((block[i] >> 4 & 3) - 2);
        codes[3 * kRow + i] = signed_field<2>(block[i] >> 6);
      }
    }
  }
};

// The same codes as T2, but value = code + 1/2: a whole number of halves.
struct Q2 : T2 {
  static constexpr int kDoubled = 1;
};

}  // namespace
}  // namespace edgekit::gemm
