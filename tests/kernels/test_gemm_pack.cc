// The packed layout byte by byte, and that unpacking is the inverse of packing.
#include <cstdint>
#include <cstring>
#include <vector>

#include "check.h"
#include "edgekit/gemm.h"

namespace {

constexpr size_t kRow = 64;

// One tile of 16 x 32 zero codes but for one.
std::vector<uint8_t> pack_one(edgekit_format weights, size_t column, size_t p, int8_t code) {
  std::vector<int8_t> codes(16 * 32, 0);
  codes[column * 32 + p] = code;
  std::vector<uint8_t> packed(edgekit_tile_code_bytes(weights, 32), 0xcc);
  edgekit_pack_codes(weights, 16, 32, codes.data(), packed.data());
  return packed;
}

TEST(a_tile_takes_16_times_32_codes_of_its_bits) {
  CHECK(edgekit_tile_code_bytes(EDGEKIT_Q8, 32) == 512);
  CHECK(edgekit_tile_code_bytes(EDGEKIT_Q4, 32) == 256);
  CHECK(edgekit_tile_code_bytes(EDGEKIT_Q3, 32) == 192);
  CHECK(edgekit_tile_code_bytes(EDGEKIT_Q2, 32) == 128);
  CHECK(edgekit_tile_code_bytes(EDGEKIT_T2, 32) == 128);
  CHECK(edgekit_tile_code_bytes(EDGEKIT_F16, 33) == 33 * 32);
  CHECK(edgekit_tile_code_bytes(EDGEKIT_F32, 33) == 33 * 64);
  CHECK(edgekit_tile_code_bytes(EDGEKIT_Q4, 33) == 512);  // k is padded to 64
  CHECK(edgekit_tile_scale_bytes(EDGEKIT_Q4, 129, 128) == 64);
  CHECK(edgekit_tile_scale_bytes(EDGEKIT_F32, 129, 0) == 0);
}

// Column 5, k = 4 * quad + 2 is byte 4 * 5 + 2 = 22 of a row.
TEST(q8_holds_one_quad_a_row) {
  const auto packed = pack_one(EDGEKIT_Q8, 5, 4 * 3 + 2, -100);
  CHECK(packed[3 * kRow + 22] == 156);
  CHECK(packed[3 * kRow + 21] == 0);
}

TEST(q4_holds_biased_low_and_signed_high_nibbles) {
  CHECK(pack_one(EDGEKIT_Q4, 5, 4 * 2 + 2, -3)[1 * kRow + 22] == 0x05);  // quad 2: low nibble of row 1
  CHECK(pack_one(EDGEKIT_Q4, 5, 4 * 3 + 2, -3)[1 * kRow + 22] == 0xd8);  // quad 3: high nibble, low is a zero code
  CHECK(pack_one(EDGEKIT_Q4, 5, 4 * 3 + 2, 7)[1 * kRow + 22] == 0x78);
}

TEST(q3_holds_eight_quads_in_three_rows) {
  constexpr uint8_t kZeroPair = 4 | 4 << 3;
  CHECK(pack_one(EDGEKIT_Q3, 5, 4 * 1 + 2, 3)[1 * kRow + 22] == (7 | 4 << 3));
  CHECK(pack_one(EDGEKIT_Q3, 5, 4 * 5 + 2, -4)[2 * kRow + 22] == 4);
  // -3 modulo 8 is 5 = 0b101: its upper two bits go to bits 7:6 of A, its lowest to bit 7 of C.
  const auto quad6 = pack_one(EDGEKIT_Q3, 5, 4 * 6 + 2, -3);
  CHECK(quad6[22] == (kZeroPair | 2 << 6));
  CHECK(quad6[kRow + 22] == kZeroPair);
  CHECK(quad6[2 * kRow + 22] == (kZeroPair | 1 << 7));
  const auto quad7 = pack_one(EDGEKIT_Q3, 5, 4 * 7 + 2, 3);  // 0b011
  CHECK(quad7[22] == kZeroPair);
  CHECK(quad7[kRow + 22] == (kZeroPair | 1 << 6));
  CHECK(quad7[2 * kRow + 22] == (kZeroPair | 1 << 6));
}

TEST(q2_holds_three_biased_fields_and_a_signed_one) {
  constexpr uint8_t kZeros = 2 | 2 << 2 | 2 << 4;
  CHECK(pack_one(EDGEKIT_Q2, 5, 2, -2)[22] == (2 << 2 | 2 << 4));
  CHECK(pack_one(EDGEKIT_Q2, 5, 4 * 2 + 2, 1)[22] == (2 | 2 << 2 | 3 << 4));
  CHECK(pack_one(EDGEKIT_Q2, 5, 4 * 3 + 2, -2)[22] == (kZeros | 2 << 6));
  CHECK(pack_one(EDGEKIT_T2, 5, 4 * 7 + 2, -1)[kRow + 22] == (kZeros | 3 << 6));
}

struct Case {
  edgekit_format weights;
  int low, high;
  float offset;
};

TEST(unpacking_a_row_gives_scale_times_code_plus_offset) {
  for (const Case& c : {Case{EDGEKIT_Q8, -127, 127, 0}, {EDGEKIT_Q4, -8, 7, 0}, {EDGEKIT_Q3, -4, 3, 0},
                        {EDGEKIT_Q2, -2, 1, 0.5f}, {EDGEKIT_T2, -1, 1, 0}}) {
    for (size_t k : {1, 31, 32, 33, 77, 128, 200}) {
      const size_t n = 21, group = 64, groups = (k + group - 1) / group;
      std::vector<int8_t> codes(n * k);
      std::vector<uint16_t> scales(n * groups);
      const size_t span = static_cast<size_t>(c.high - c.low + 1);
      for (size_t i = 0; i < codes.size(); i++) codes[i] = static_cast<int8_t>(c.low + static_cast<int>(i * 7 % span));
      for (size_t i = 0; i < scales.size(); i++) scales[i] = static_cast<uint16_t>(i % 2 ? 0x3f80 : 0xc000);  // 1, -2
      std::vector<uint8_t> packed(2 * edgekit_tile_code_bytes(c.weights, k));
      std::vector<uint16_t> packed_scales(2 * edgekit_tile_scale_bytes(c.weights, k, group) / 2);
      edgekit_pack_codes(c.weights, n, k, codes.data(), packed.data());
      edgekit_pack_scales(n, groups, scales.data(), packed_scales.data());
      for (size_t row : {size_t{0}, size_t{15}, size_t{16}, n - 1}) {
        std::vector<float> values(k);
        edgekit_unpack_row(c.weights, k, group, packed.data(), packed_scales.data(), row, values.data());
        for (size_t p = 0; p < k; p++) {
          const float scale = (row * groups + p / group) % 2 ? 1.0f : -2.0f;
          CHECK_THAT(values[p] == scale * (static_cast<float>(codes[row * k + p]) + c.offset), "k %zu row %zu p %zu", k,
                     row, p);
        }
      }
    }
  }
}

TEST(unpacking_a_float_row_gives_the_floats) {
  const uint16_t halves[] = {0x3c00, 0xc000, 0x0001, 0x83ff, 0x7bff};  // 1, -2, 2^-24, -1023 * 2^-24, 65504
  const float expected[] = {1, -2, 0x1p-24f, -1023 * 0x1p-24f, 65504};
  std::vector<uint8_t> packed(edgekit_tile_code_bytes(EDGEKIT_F16, 1));
  edgekit_pack_codes(EDGEKIT_F16, 5, 1, halves, packed.data());
  for (size_t row = 0; row < 5; row++) {
    float value = 0;
    edgekit_unpack_row(EDGEKIT_F16, 1, 0, packed.data(), nullptr, row, &value);
    CHECK(value == expected[row]);
  }
  const float floats[] = {1, 2, 3, 4, 5, 6};
  packed.resize(edgekit_tile_code_bytes(EDGEKIT_F32, 3));
  edgekit_pack_codes(EDGEKIT_F32, 2, 3, floats, packed.data());
  float values[3];
  edgekit_unpack_row(EDGEKIT_F32, 3, 0, packed.data(), nullptr, 1, values);
  CHECK(values[0] == 4 && values[1] == 5 && values[2] == 6);
}

}  // namespace

EDGEKIT_TEST_MAIN
