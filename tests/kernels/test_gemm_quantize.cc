// Activations and weights to codes: hand-worked groups, the best scale there is, and the same bits on every ISA.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "check.h"
#include "edgekit/cpu.h"
#include "edgekit/gemm.h"
#include "gemm/quantize.h"
#include "guarded.h"

namespace {

using edgekit::testing::Guarded;

struct Random {
  uint64_t state;
  uint32_t next() {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>(state >> 33);
  }
  // About normal: the sum of four uniform values.
  float normal() {
    float sum = 0;
    for (int i = 0; i < 4; i++) sum += static_cast<float>(next() & 0xffff) / 65536.0f - 0.5f;
    return sum * 1.7f;
  }
};

float bf16_value(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

struct Row {
  explicit Row(std::vector<float> x, size_t k_padded, size_t group)
      : codes(k_padded, 99), scale(k_padded / group + 1, -1.0f), sum(k_padded / group + 1, -1) {
    edgekit_quantize_row(x.size(), k_padded, group, x.data(), codes.data(), scale.data(), sum.data());
  }
  std::vector<int8_t> codes;
  std::vector<float> scale;
  std::vector<int32_t> sum;
};

TEST(a_row_is_rounded_to_nearest_and_ties_go_to_even) {
  std::vector<float> x(32, 0.0f);
  const float values[] = {127, 0.5f, 1.5f, 2.5f, -0.5f, -1.5f, -126.6f, 0.49f};
  const int expected[] = {127, 0, 2, 2, 0, -2, -127, 0};
  for (size_t i = 0; i < 8; i++) x[i] = values[i];
  const Row row(x, 32, 32);
  CHECK(row.scale[0] == 1.0f);
  CHECK(row.sum[0] == 127 + 2 + 2 - 2 - 127);
  for (size_t i = 0; i < 8; i++) CHECK_THAT(row.codes[i] == expected[i], "value %zu", i);
}

TEST(every_group_has_its_own_scale_and_sum) {
  std::vector<float> x(96, 0.0f);
  x[0] = 254;
  x[40] = -1.27f;
  x[41] = 0.02f;
  x[95] = 12.7f;
  const Row row(x, 96, 32);
  CHECK(row.scale[0] == 2.0f && row.codes[0] == 127 && row.sum[0] == 127);
  CHECK(row.scale[1] == 1.27f / 127.0f && row.codes[40] == -127 && row.codes[41] == 2 && row.sum[1] == -125);
  CHECK(row.codes[95] == 127 && row.sum[2] == 127);
}

TEST(codes_past_the_end_of_a_row_are_zero) {
  const Row row(std::vector<float>(35, 1.0f), 64, 64);
  CHECK(row.codes[34] == 127 && row.sum[0] == 35 * 127);
  for (size_t i = 35; i < 64; i++) CHECK(row.codes[i] == 0);
}

TEST(a_group_of_zeros_has_scale_zero) {
  const Row zeros(std::vector<float>(32, -0.0f), 32, 32);
  CHECK(zeros.scale[0] == 0 && zeros.sum[0] == 0 && zeros.codes[7] == 0);
  const Row tiny(std::vector<float>(32, 1e-38f), 32, 32);  // 127 / max would be infinite
  CHECK(tiny.scale[0] == 0 && tiny.sum[0] == 0 && tiny.codes[7] == 0);
}

TEST(a_fault_in_a_row_shows_in_its_scale) {
  for (float fault : {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(), NAN, -NAN}) {
    std::vector<float> x(64, 1.0f);
    x[5] = fault;
    const Row row(x, 64, 32);
    CHECK(std::isnan(row.scale[0]) && row.sum[0] == 0 && row.codes[0] == 0);
    CHECK(row.scale[1] == 1.0f / 127.0f);  // the fault stays in its group
  }
}

struct Isa {
  const char* word;
  decltype(&edgekit::gemm::scalar::quantize_row) row;
  decltype(&edgekit::gemm::scalar::quantize_weights) weights;
};

// Those that this CPU can run.
std::vector<Isa> isas() {
  std::vector<Isa> list;
  for (const Isa& isa : {
         Isa{"scalar", edgekit::gemm::scalar::quantize_row, edgekit::gemm::scalar::quantize_weights},
#if defined(__x86_64__)
         Isa{"avx2", edgekit::gemm::avx2::quantize_row, edgekit::gemm::avx2::quantize_weights},
         Isa{"avx512_vnni", edgekit::gemm::avx512_vnni::quantize_row, edgekit::gemm::avx512_vnni::quantize_weights},
#endif
       }) {
    if ((edgekit_isa_features(isa.word) & ~edgekit_cpu_features()) == 0) list.push_back(isa);
  }
  return list;
}

TEST(rows_are_the_same_on_every_isa_and_nothing_past_the_end_is_touched) {
  Random random{1};
  for (size_t group : {32, 64, 128}) {
    for (size_t k : {1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 200, 576, 1000}) {
      const size_t padded = (k + 31) / 32 * 32, groups = (k + group - 1) / group;
      Guarded<float> x(k), scale(groups), expected_scale(groups);
      Guarded<int8_t> codes(padded), expected(padded);
      Guarded<int32_t> sum(groups), expected_sum(groups);
      for (size_t i = 0; i < k; i++) x[i] = random.normal();
      for (size_t g = 0; g < groups; g++) {
        float largest = 0;
        expected_sum[g] = 0;
        for (size_t p = g * group; p < k && p < (g + 1) * group; p++) largest = std::fmax(largest, std::fabs(x[p]));
        expected_scale[g] = largest / 127.0f;
        for (size_t p = g * group; p < k && p < (g + 1) * group; p++) {
          expected[p] = static_cast<int8_t>(std::nearbyint(x[p] * (127.0f / largest)));
          expected_sum[g] += expected[p];
        }
      }
      for (const Isa& isa : isas()) {
        isa.row(k, padded, group, x.data(), codes.data(), scale.data(), sum.data());
        CHECK_THAT(std::memcmp(codes.data(), expected.data(), padded) == 0, "%s k %zu", isa.word, k);
        CHECK_THAT(std::memcmp(scale.data(), expected_scale.data(), groups * 4) == 0, "%s k %zu", isa.word, k);
        CHECK_THAT(std::memcmp(sum.data(), expected_sum.data(), groups * 4) == 0, "%s k %zu", isa.word, k);
      }
    }
  }
}

struct Levels {
  edgekit_format format;
  int low, high;
  double offset;
};

constexpr Levels kLevels[] = {{EDGEKIT_Q8, -127, 127, 0}, {EDGEKIT_Q4, -8, 7, 0}, {EDGEKIT_Q3, -4, 3, 0},
                              {EDGEKIT_Q2, -2, 1, 0.5},   {EDGEKIT_T2, -1, 1, 0}};

double value_error(double weight, int code, double scale, double offset) {
  const double error = weight - scale * (code + offset);
  return error * error;
}

// Squared error with the nearest level for each weight, whatever rounding is used to find it.
double least_error(const std::vector<float>& weights, double scale, const Levels& levels) {
  double sum = 0;
  for (float weight : weights) {
    double least = INFINITY;
    for (int code = levels.low; code <= levels.high; code++) {
      const double error = value_error(weight, code, scale, levels.offset);
      if (error < least) least = error;
    }
    sum += least;
  }
  return sum;
}

TEST(weights_that_are_levels_are_kept_exactly) {
  for (const Levels& levels : kLevels) {
    std::vector<float> weights;
    for (int i = 0; i < 64; i++) {
      const int code = levels.low + i % (levels.high - levels.low + 1);
      weights.push_back(static_cast<float>(0.5 * (code + levels.offset)));
    }
    if (levels.format == EDGEKIT_Q8) weights[63] = 63.5f;  // 0.5 * 127
    std::vector<int8_t> codes(64);
    uint16_t scale = 0;
    edgekit_quantize_weights(levels.format, 1, 64, 64, 33, weights.data(), nullptr, codes.data(), &scale);
    for (size_t i = 0; i < 64; i++) {
      CHECK_THAT(bf16_value(scale) * (static_cast<float>(codes[i]) + static_cast<float>(levels.offset)) == weights[i],
                 "format %d weight %zu", levels.format, i);
    }
  }
}

TEST(the_error_is_close_to_that_of_the_best_scale_there_is) {
  Random random{7};
  for (const Levels& levels : kLevels) {
    for (size_t group : {32, 128}) {
      std::vector<float> weights(group);
      for (auto& weight : weights) weight = random.normal();
      float largest = 0;
      for (float weight : weights) largest = std::fmax(largest, std::fabs(weight));
      double best = INFINITY;
      for (int bits = 0; bits < 0x8000; bits++) {  // every positive bf16 and its negative
        const double scale = bf16_value(static_cast<uint16_t>(bits));
        if (scale < largest / 500 || scale > largest * 2) continue;
        best = std::fmin(best, least_error(weights, scale, levels));
        best = std::fmin(best, least_error(weights, -scale, levels));
      }
      std::vector<int8_t> codes(group);
      uint16_t scale = 0;
      edgekit_quantize_weights(levels.format, 1, group, group, 64, weights.data(), nullptr, codes.data(), &scale);
      double error = 0;
      for (size_t i = 0; i < group; i++) error += value_error(weights[i], codes[i], bf16_value(scale), levels.offset);
      // The search steps over bf16 neighbours, so it may miss the best by a few of them.
      CHECK_THAT(error <= 1.05 * best, "format %d group %zu: %g, best %g", levels.format, group, error, best);
    }
  }
}

TEST(a_group_of_zeros_has_scale_zero_and_zero_codes) {
  for (const Levels& levels : kLevels) {
    const std::vector<float> weights(40, 0.0f);
    std::vector<int8_t> codes(40, 99);
    std::vector<uint16_t> scales(2, 99);
    edgekit_quantize_weights(levels.format, 1, 40, 32, 16, weights.data(), nullptr, codes.data(), scales.data());
    CHECK(scales[0] == 0 && scales[1] == 0);
    for (int8_t code : codes) CHECK(code == 0);
  }
}

TEST(an_important_column_is_kept_better) {
  Random random{3};
  std::vector<float> weights(64), importance(64, 1.0f);
  for (auto& weight : weights) weight = random.normal();
  weights[10] = 0.71f;
  importance[10] = 1e6f;
  std::vector<int8_t> codes(64);
  uint16_t scale = 0;
  const auto error = [&] { return std::fabs(bf16_value(scale) * (codes[10] + 0.5f) - weights[10]); };
  edgekit_quantize_weights(EDGEKIT_Q2, 1, 64, 64, 64, weights.data(), nullptr, codes.data(), &scale);
  const float before = error();
  edgekit_quantize_weights(EDGEKIT_Q2, 1, 64, 64, 64, weights.data(), importance.data(), codes.data(), &scale);
  CHECK_THAT(error() < 0.02f && error() < before, "%g, before %g", error(), before);
}

TEST(a_fault_in_the_weights_gives_a_group_of_zeros) {
  std::vector<float> weights(32, 1.0f);
  weights[3] = NAN;
  std::vector<int8_t> codes(32, 99);
  uint16_t scale = 99;
  edgekit_quantize_weights(EDGEKIT_Q4, 1, 32, 32, 16, weights.data(), nullptr, codes.data(), &scale);
  CHECK(scale == 0 && codes[0] == 0 && codes[3] == 0);
}

TEST(weights_get_the_same_codes_on_every_isa_and_nothing_past_the_end_is_touched) {
  Random random{5};
  for (const Levels& levels : kLevels) {
    for (size_t group : {32, 64, 128}) {
      for (size_t k : {1, 17, 33, 64, 130, 300}) {
        const size_t n = 3, groups = (k + group - 1) / group;
        Guarded<float> weights(n * k), importance(k);
        Guarded<int8_t> codes(n * k), expected(n * k);
        Guarded<uint16_t> scales(n * groups), expected_scales(n * groups);
        for (size_t i = 0; i < n * k; i++) weights[i] = random.normal();
        for (size_t i = 0; i < k; i++) importance[i] = random.normal() + 4;
        bool first = true;
        for (const Isa& isa : isas()) {
          isa.weights(levels.format, n, k, group, 20, weights.data(), importance.data(),
                      first ? expected.data() : codes.data(), first ? expected_scales.data() : scales.data());
          if (!first) {
            const bool same_codes = std::memcmp(codes.data(), expected.data(), n * k) == 0;
            const bool same_scales = std::memcmp(scales.data(), expected_scales.data(), 2 * n * groups) == 0;
            CHECK_THAT(same_codes && same_scales, "%s k %zu", isa.word, k);
          }
          first = false;
        }
        for (size_t i = 0; i < n * k; i++) CHECK(expected[i] >= levels.low && expected[i] <= levels.high);
      }
    }
  }
}

}  // namespace

EDGEKIT_TEST_MAIN
