// The cache of keys and values: where a position lies, and how its numbers are rounded.
#include "program/kv_cache.h"

#include <cmath>
#include <vector>

#include "check.h"
#include "edgekit/cpu.h"

namespace edgekit::testing {
namespace {

const ops::Ops& best() { return ops::choose_ops(edgekit_cpu_features()); }

edgekit_program_info info_of(uint32_t layers, uint32_t kv_heads, uint32_t head_dim) {
  edgekit_program_info info{};
  info.layers = layers;
  info.kv_heads = kv_heads;
  info.head_dim = head_dim;
  return info;
}

// Appends a key and its double as value at `position` of layer 1, head 2.
void append(const KvCache& cache, size_t position, const std::vector<float>& key) {
  std::vector<float> value(key);
  for (float& number : value) number *= 2;
  std::vector<int8_t> codes((key.size() + 31) / 32 * 32);
  cache.append(best(), 1, 2, position, key.data(), value.data(), codes.data());
}

TEST(a_position_has_its_own_codes_and_scales) {
  constexpr size_t kDim = 10, kStride = 16;
  KvCache cache;
  // 150 positions are rounded up to 160: a block of 128 and one of 32.
  CHECK(cache.allocate(info_of(2, 3, kDim), 150, EDGEKIT_KV_Q8));
  CHECK(cache.bytes() == 2 * 3 * 160 * (kDim + kStride + 2 * 4));
  for (const size_t position : {0u, 15u, 16u, 77u, 127u, 128u, 149u}) {
    std::vector<float> key(kDim);
    for (size_t d = 0; d < kDim; d++) key[d] = static_cast<float>(d) - 4;  // at most 5
    key[1] = -0.5f * 5 / 127;  // a tie: the even code is 0
    key[2] = 1.5f * 5 / 127;
    key[3] = 2.5f * 5 / 127;
    append(cache, position, key);
    const KvBlock block = cache.block(1, 2, position / 128);
    const size_t at = position % 128;
    const auto* keys = reinterpret_cast<const int8_t*>(block.keys);
    const auto* values = reinterpret_cast<const int8_t*>(block.values);
    const int expected[kDim] = {-102, 0, 2, 2, 0, 25, 51, 76, 102, 127};
    for (size_t d = 0; d < kDim; d++) {
      CHECK_THAT(keys[(at / 16 * kDim + d) * 16 + at % 16] == expected[d], "position %zu, %zu", position, d);
      CHECK_THAT(values[at * kStride + d] == expected[d], "position %zu, %zu", position, d);
    }
    for (size_t d = kDim; d < kStride; d++) CHECK(values[at * kStride + d] == 0);
    CHECK(block.key_scales[at] == 5.0f / 127 && block.value_scales[at] == 10.0f / 127);
  }
}

TEST(zeros_are_zeros_and_what_is_no_number_shows) {
  KvCache cache;
  CHECK(cache.allocate(info_of(2, 3, 4), 16, EDGEKIT_KV_Q8));
  append(cache, 3, {0, 0, 0, 0});
  const KvBlock block = cache.block(1, 2, 0);
  CHECK(block.key_scales[3] == 0 && block.value_scales[3] == 0);
  append(cache, 4, {1, NAN, 0, 0});
  append(cache, 5, {INFINITY, 1, 0, 0});
  CHECK(std::isnan(block.key_scales[4]) && std::isnan(block.value_scales[5]));
}

TEST(halves_lie_in_the_same_places) {
  constexpr size_t kDim = 18, kStride = 32;
  KvCache cache;
  CHECK(cache.allocate(info_of(2, 3, kDim), 300, EDGEKIT_KV_F16));
  CHECK(cache.bytes() == 2 * 3 * 304 * (kDim + kStride) * 2);
  append(cache, 259, std::vector<float>(kDim, 1.0f));
  const KvBlock block = cache.block(1, 2, 2);
  CHECK(block.key_scales == nullptr && block.value_scales == nullptr);
  const auto* keys = reinterpret_cast<const uint16_t*>(block.keys);
  const auto* values = reinterpret_cast<const uint16_t*>(block.values);
  for (size_t d = 0; d < kDim; d++) {
    CHECK(keys[d * 16 + 3] == 0x3c00 && keys[d * 16 + 4] == 0);
    CHECK(values[3 * kStride + d] == 0x4000);
  }
}

TEST(blocks_follow_each_other_without_a_gap) {
  for (const edgekit_kv_format format : {EDGEKIT_KV_F16, EDGEKIT_KV_Q8}) {
    KvCache cache;
    CHECK(cache.allocate(info_of(2, 3, 16), 256, format));
    const uint8_t* expected = cache.block(0, 0, 0).keys;
    for (size_t i = 0; i < 2 * 3 * 2; i++) {
      const KvBlock block = cache.block(i / 6, i / 2 % 3, i % 2);
      CHECK(block.keys == expected);
      expected += block.bytes;
    }
    CHECK(expected == cache.block(0, 0, 0).keys + cache.bytes());
  }
}

}  // namespace
}  // namespace edgekit::testing

EDGEKIT_TEST_MAIN
