// The operations between products: what they compute, and that every ISA computes the same bits.
#include <cmath>
#include <cstring>
#include <vector>

#include "check.h"
#include "edgekit/cpu.h"
#include "guarded.h"
#include "ops/ops.h"
#include "ops/rope.h"
#include "program_builder.h"

namespace edgekit::testing {
namespace {

using ops::Ops;

std::vector<const Ops*> all_sets() {
  const Ops* sets[4];
  const size_t count = ops::list_ops(edgekit_cpu_features(), sets);
  return std::vector<const Ops*>(sets, sets + count);
}

// The plain one, and the best.
const Ops& scalar() { return *all_sets().back(); }

std::vector<float> random_floats(size_t n, float scale, uint64_t seed = 3) {
  Random random(seed);
  std::vector<float> values(n);
  for (float& value : values) value = scale * random.uniform();
  return values;
}

bool same_bits(const float* a, const float* b, size_t n) { return std::memcmp(a, b, n * sizeof(float)) == 0; }

constexpr size_t kSizes[] = {1, 2, 15, 16, 17, 31, 32, 33, 48, 64, 576, 2048, 2049};

TEST(the_scalar_set_is_always_there_and_comes_last) {
  CHECK(std::strcmp(scalar().isa, "scalar") == 0);
  CHECK(ops::choose_ops(0).isa == scalar().isa);
  CHECK(&ops::choose_ops(edgekit_cpu_features()) == all_sets().front());
}

TEST(rms_norm_divides_by_the_root_of_the_mean_square) {
  for (const Ops* set : all_sets()) {
    for (const size_t n : kSizes) {
      Guarded<float> x(n), weight(n), out(n);
      const std::vector<float> values = random_floats(n, 3.0f), weights = random_floats(n, 1.0f, 4);
      std::memcpy(x.data(), values.data(), n * sizeof(float));
      std::memcpy(weight.data(), weights.data(), n * sizeof(float));
      set->rms_norm(n, x.data(), weight.data(), 1e-5f, out.data());
      double squares = 0;
      for (const float value : values) squares += double(value) * value;
      const double inverse = 1.0 / std::sqrt(squares / static_cast<double>(n) + 1e-5);
      std::vector<float> expected(n);
      scalar().rms_norm(n, x.data(), weight.data(), 1e-5f, expected.data());
      CHECK_THAT(same_bits(out.data(), expected.data(), n), "%s, n = %zu", set->isa, n);
      for (size_t i = 0; i < n; i++) {
        const double exact = values[i] * inverse * weights[i];
        // n / 16 + 5 additions of squares, each off by half a unit, halved by the root; then three products.
        const double tolerance = std::fabs(exact) * (static_cast<double>(n) / 32 + 6) * 0x1p-24;
        CHECK_THAT(std::fabs(out[i] - exact) <= tolerance, "%s, n = %zu, i = %zu", set->isa, n, i);
      }
    }
  }
}

TEST(adding_adds_in_place) {
  for (const Ops* set : all_sets()) {
    for (const size_t n : kSizes) {
      Guarded<float> x(n), y(n);
      for (size_t i = 0; i < n; i++) {
        x[i] = static_cast<float>(i);
        y[i] = 0.5f;
      }
      set->add(n, x.data(), y.data());
      for (size_t i = 0; i < n; i++) CHECK(y[i] == static_cast<float>(i) + 0.5f);
    }
  }
}

TEST(silu_multiply_gates_alternating_tiles) {
  for (const Ops* set : all_sets()) {
    for (const size_t pairs : {1u, 2u, 7u}) {
      Guarded<float> in(32 * pairs), out(16 * pairs);
      const std::vector<float> values = random_floats(32 * pairs, 20.0f);
      std::memcpy(in.data(), values.data(), values.size() * sizeof(float));
      set->silu_multiply(pairs, in.data(), out.data());
      std::vector<float> expected(16 * pairs);
      scalar().silu_multiply(pairs, in.data(), expected.data());
      CHECK_THAT(same_bits(out.data(), expected.data(), expected.size()), "%s", set->isa);
      for (size_t i = 0; i < 16 * pairs; i++) {
        const double gate = values[i / 16 * 32 + i % 16], up = values[i / 16 * 32 + 16 + i % 16];
        const double exact = gate / (1 + std::exp(-gate)) * up;
        // The exponential is within two units, and its error is never larger in the quotient.
        CHECK_THAT(std::fabs(out[i] - exact) <= std::fabs(exact) * 6 * 0x1p-24 + 1e-30, "%s, gate %g", set->isa, gate);
      }
    }
  }
}

TEST(silu_of_extreme_gates_is_finite) {
  const float extremes[] = {0.0f, -0.0f, 87.0f, -87.0f, 88.0f, -88.0f, 1e30f, -1e30f, 3e38f, -3e38f};
  for (const Ops* set : all_sets()) {
    float in[32] = {}, out[16];
    for (size_t i = 0; i < 10; i++) {
      in[i] = extremes[i];
      in[16 + i] = 1.0f;
    }
    set->silu_multiply(1, in, out);
    for (size_t i = 0; i < 10; i++) {
      const double gate = extremes[i];
      const double exact = gate < -80 ? 0 : gate / (1 + std::exp(-gate));
      CHECK_THAT(std::fabs(out[i] - exact) <= std::fabs(exact) * 1e-6 + 1e-8, "%s, gate %g", set->isa, gate);
    }
  }
}

TEST(exponentials_are_right_to_two_units_in_the_last_place) {
  std::vector<float> x;
  for (int i = -8700; i <= 8800; i++) x.push_back(static_cast<float>(i) / 100.0f);
  for (const Ops* set : all_sets()) {
    std::vector<float> y(x.size()), expected(x.size());
    set->exponentials(x.size(), x.data(), 0.0f, 1.0f, y.data());
    scalar().exponentials(x.size(), x.data(), 0.0f, 1.0f, expected.data());
    CHECK(same_bits(y.data(), expected.data(), y.size()));
    for (size_t i = 0; i < x.size(); i++) {
      const double exact = std::exp(static_cast<double>(x[i]));
      CHECK_THAT(std::fabs(y[i] - exact) <= 2 * 0x1p-23 * exact, "%s, x = %g", set->isa, double(x[i]));
    }
  }
}

TEST(the_exponential_of_very_small_numbers_is_zero) {
  for (const Ops* set : all_sets()) {
    const float x[] = {-87.5f, -1000.0f, -INFINITY, 0.0f};
    float y[4];
    CHECK(set->exponentials(4, x, 0.0f, 1.0f, y) == 1.0f);
    CHECK(y[0] == 0.0f && y[1] == 0.0f && y[2] == 0.0f && y[3] == 1.0f);
  }
}

TEST(sums_of_exponentials_have_the_same_bits_and_need_no_output) {
  for (const size_t n : kSizes) {
    Guarded<float> x(n);
    const std::vector<float> values = random_floats(n, 8.0f);
    std::memcpy(x.data(), values.data(), n * sizeof(float));
    const float expected = scalar().exponentials(n, x.data(), 1.5f, 0.7f, nullptr);
    double exact = 0;
    for (const float value : values) exact += std::exp((double(value) - 1.5) * 0.7f);
    CHECK(std::fabs(expected - exact) <= exact * (static_cast<double>(n) / 16 + 40) * 0x1p-24);
    for (const Ops* set : all_sets()) {
      CHECK_THAT(set->exponentials(n, x.data(), 1.5f, 0.7f, nullptr) == expected, "%s, n = %zu", set->isa, n);
    }
  }
}

TEST(strip_maxima_are_the_largest_of_each_64) {
  for (const Ops* set : all_sets()) {
    for (const size_t n : {1u, 63u, 64u, 65u, 200u, 1000u}) {
      Guarded<float> x(n);
      const std::vector<float> values = random_floats(n, 5.0f);
      std::memcpy(x.data(), values.data(), n * sizeof(float));
      std::vector<float> maxima((n + 63) / 64);
      set->strip_maxima(n, x.data(), maxima.data());
      for (size_t strip = 0; strip < maxima.size(); strip++) {
        float expected = -INFINITY;
        for (size_t i = strip * 64; i < n && i < strip * 64 + 64; i++) expected = std::fmax(expected, x[i]);
        CHECK_THAT(maxima[strip] == expected, "%s, n = %zu", set->isa, n);
      }
    }
  }
}

TEST(rotation_turns_each_pair_by_its_angle) {
  for (const Ops* set : all_sets()) {
    for (const size_t dim : {2u, 10u, 32u, 64u, 80u, 128u}) {
      Guarded<float> head(dim), cosine(dim / 2), sine(dim / 2);
      const std::vector<float> values = random_floats(dim, 2.0f);
      std::memcpy(head.data(), values.data(), dim * sizeof(float));
      for (size_t i = 0; i < dim / 2; i++) {
        cosine[i] = std::cos(static_cast<float>(i) * 0.3f);
        sine[i] = std::sin(static_cast<float>(i) * 0.3f);
      }
      set->rotate(dim, cosine.data(), sine.data(), head.data());
      for (size_t i = 0; i < dim / 2; i++) {
        const float a = values[i], b = values[i + dim / 2];
        // Two products and a sum, each rounded once: the same float everywhere.
        const float along = a * cosine[i], against = b * sine[i], across = b * cosine[i], down = a * sine[i];
        CHECK_THAT(head[i] == along - against && head[i + dim / 2] == across + down, "%s, dim %zu", set->isa, dim);
      }
    }
  }
}

TEST(rotary_angles_are_those_of_the_float_product) {
  const float frequencies[] = {1.0f, 0.75f, 0.1f, 0.01f, 1e-4f, 1.7e-7f};
  for (const float position : {0.0f, 1.0f, 2.0f, 100.0f, 2047.0f, 131071.0f, 1048575.0f}) {
    float cosine[6], sine[6];
    ops::rope_angles(6, frequencies, position, 1.0f, cosine, sine);
    for (size_t i = 0; i < 6; i++) {
      const double angle = static_cast<double>(position * frequencies[i]);
      CHECK_THAT(cosine[i] == static_cast<float>(std::cos(angle)) && sine[i] == static_cast<float>(std::sin(angle)),
                 "position %g, frequency %g", double(position), double(frequencies[i]));
    }
  }
  float cosine, sine;
  ops::rope_angles(1, frequencies, 3.0f, 1.25f, &cosine, &sine);
  CHECK(cosine == static_cast<float>(std::cos(3.0)) * 1.25f);
  const float broken = NAN;
  ops::rope_angles(1, &broken, 3.0f, 1.0f, &cosine, &sine);
  CHECK(cosine == 1.0f && sine == 0.0f);
}

TEST(keys_and_values_become_halves_rounded_to_even) {
  // Every half, the middles between neighbours, and values past the largest.
  std::vector<float> values;
  for (uint32_t bits = 0; bits < 0x7c00; bits++) {
    const double low = value_of_half(static_cast<uint16_t>(bits));
    const double high = value_of_half(static_cast<uint16_t>(bits + 1));
    values.push_back(static_cast<float>(low));
    values.push_back(static_cast<float>(-low));
    if (bits + 1 < 0x7c00) values.push_back(static_cast<float>((low + high) / 2));
  }
  for (const float large : {65504.0f, 65519.0f, 65520.0f, 1e9f, -1e9f, 0x1p-25f, 0x1.8p-25f, 1e-30f}) {
    values.push_back(large);
  }
  const size_t n = values.size(), stride = (n + 15) / 16 * 16;
  for (const Ops* set : all_sets()) {
    std::vector<uint16_t> row(stride), keys(n * 16);
    set->append_value(n, values.data(), row.data());
    set->append_key(n, values.data(), 5, keys.data());
    for (size_t i = 0; i < n; i++) {
      const float clamped = std::fmin(std::fmax(values[i], -65504.0f), 65504.0f);
      const uint16_t sign = std::signbit(values[i]) ? 0x8000 : 0;
      CHECK_THAT(row[i] == (half_bits(clamped) | sign), "%s, %a gives %04x", set->isa, double(values[i]), row[i]);
      CHECK(keys[i * 16 + 5] == row[i]);
    }
    for (size_t i = n; i < stride; i++) CHECK(row[i] == 0);
  }
}

// One head's cache, and queries that see different parts of it. Nothing past the cache may be read.
struct Attention {
  Attention(size_t dim, size_t count)
      : dim(dim), stride((dim + 15) / 16 * 16), queries(random_floats(count * dim, 1.0f)),
        dense_keys(ops::kBlock * dim), dense_values(ops::kBlock * dim) {
    Random random(11);
    for (size_t i = 0; i < count; i++) {
      rows.push_back(&queries[i * dim]);
      const size_t a = random.below(ops::kBlock + 1), b = random.below(ops::kBlock + 1);
      begin.push_back(static_cast<uint16_t>(a < b ? a : b));
      end.push_back(static_cast<uint16_t>(a < b ? b : a));
    }
    begin[0] = 0;
    end[0] = ops::kBlock;
  }

  // Weighted sums divided by the sum of weights; zeros for queries that see nothing.
  std::vector<float> run(const Ops& set) const {
    const size_t partial_stride = stride + 16;
    std::vector<float> partial(rows.size() * partial_stride), out(rows.size() * dim);
    ops::AttendBlock block = cached();
    block.queries = rows.size();
    block.head_dim = dim;
    block.q = rows.data();
    block.next_bytes = 1 << 16;
    block.begin = begin.data();
    block.end = end.data();
    block.scale = 0.25f;
    block.partial = partial.data();
    block.partial_stride = partial_stride;
    set.attend(block);
    for (size_t i = 0; i < rows.size(); i++) {
      std::vector<float> merged(partial_stride);
      merged[stride] = -INFINITY;
      set.merge(stride, &partial[i * partial_stride], merged.data());
      if (begin[i] < end[i]) set.finish_attention(dim, stride, merged.data(), &out[i * dim]);
    }
    return out;
  }

  double exact(size_t query, size_t d) const {
    double total = 0, sum = 0;
    for (size_t j = begin[query]; j < end[query]; j++) {
      double score = 0;
      for (size_t e = 0; e < dim; e++) {
        score += double(queries[query * dim + e]) * dense_keys[j * dim + e];
      }
      const double weight = std::exp(score * 0.25);
      total += weight;
      sum += weight * dense_values[j * dim + d];
    }
    return begin[query] < end[query] ? sum / total : 0;
  }

  // Keys, values and their scales.
  virtual ops::AttendBlock cached() const = 0;

  size_t dim, stride;
  std::vector<float> queries;
  std::vector<double> dense_keys, dense_values;  // what the cache holds
  std::vector<uint16_t> begin, end;
  std::vector<const float*> rows;

 protected:
  ~Attention() = default;
};

struct HalfAttention final : Attention {
  HalfAttention(size_t dim, size_t count)
      : Attention(dim, count), keys(ops::kBlock * dim), values(ops::kBlock * stride) {
    const std::vector<float> key = random_floats(dense_keys.size(), 1.0f, 8);
    const std::vector<float> value = random_floats(dense_values.size(), 1.0f, 9);
    for (size_t j = 0; j < ops::kBlock; j++) {
      scalar().append_key(dim, &key[j * dim], j % 16, &keys[j / 16 * 16 * dim]);
      scalar().append_value(dim, &value[j * dim], &values[j * stride]);
    }
    for (size_t i = 0; i < key.size(); i++) {
      dense_keys[i] = value_of_half(half_bits(key[i]));
      dense_values[i] = value_of_half(half_bits(value[i]));
    }
  }

  ops::AttendBlock cached() const override {
    ops::AttendBlock block{};
    block.keys = keys.data();
    block.values = values.data();
    return block;
  }

  Guarded<uint16_t> keys, values;
};

struct CodedAttention final : Attention {
  CodedAttention(size_t dim, size_t count)
      : Attention(dim, count), keys(ops::kBlock * dim), values(ops::kBlock * stride), key_scales(ops::kBlock),
        value_scales(ops::kBlock) {
    Random random(5);
    for (size_t j = 0; j < ops::kBlock; j++) {
      key_scales[j] = std::fabs(random.uniform()) * 0x1p-7f;
      value_scales[j] = std::fabs(random.uniform()) * 0x1p-7f;
      for (size_t d = 0; d < dim; d++) {
        const auto key = static_cast<int8_t>(random.below(255) - 127);
        const auto value = static_cast<int8_t>(random.below(255) - 127);
        keys[(j / 16 * dim + d) * 16 + j % 16] = key;
        values[j * stride + d] = value;
        dense_keys[j * dim + d] = double(key) * key_scales[j];
        dense_values[j * dim + d] = double(value) * value_scales[j];
      }
    }
  }

  ops::AttendBlock cached() const override {
    ops::AttendBlock block{};
    block.keys = keys.data();
    block.values = values.data();
    block.key_scales = key_scales.data();
    block.value_scales = value_scales.data();
    return block;
  }

  Guarded<int8_t> keys, values;
  Guarded<float> key_scales, value_scales;
};

template <class Cached>
void check_attention() {
  for (const size_t dim : {2u, 10u, 16u, 48u, 64u, 128u}) {
    for (const size_t count : {1u, 2u, 3u, 4u, 5u, 7u, 8u, 9u, 24u}) {
      const Cached attention(dim, count);
      const std::vector<float> expected = attention.run(scalar());
      for (size_t i = 0; i < count; i++) {
        for (size_t d = 0; d < dim; d++) {
          // A score is a sum of dim products of numbers below one; its error is that of the weight, and of the mean.
          const double tolerance = (static_cast<double>(dim) + 140) * 0x1p-24;
          const double error = std::fabs(expected[i * dim + d] - attention.exact(i, d));
          CHECK_THAT(error <= tolerance, "dim %zu, query %zu: %g", dim, i, error);
        }
      }
      for (const Ops* set : all_sets()) {
        const std::vector<float> found = attention.run(*set);
        CHECK_THAT(same_bits(found.data(), expected.data(), found.size()), "%s, dim %zu, %zu queries", set->isa, dim,
                   count);
      }
    }
  }
}

TEST(attention_weighs_the_values_that_a_query_sees) { check_attention<HalfAttention>(); }

TEST(attention_over_codes_weighs_codes_times_scales) { check_attention<CodedAttention>(); }

TEST(merging_blocks_gives_the_softmax_over_all_of_them) {
  for (const Ops* set : all_sets()) {
    constexpr size_t kStride = 16;
    // Two blocks of one position each, with scores 1 and 3 and values 10 and 20.
    float first[kStride + 2] = {10}, second[kStride + 2] = {20}, merged[kStride + 2] = {}, out[1];
    first[kStride] = 1;
    second[kStride] = 3;
    first[kStride + 1] = second[kStride + 1] = 1;
    merged[kStride] = -INFINITY;
    set->merge(kStride, first, merged);
    CHECK(same_bits(merged, first, kStride + 2));
    set->merge(kStride, second, merged);
    set->finish_attention(1, kStride, merged, out);
    const double weight = std::exp(-2.0);
    CHECK(std::fabs(out[0] - (10 * weight + 20) / (weight + 1)) < 20 * 4 * 0x1p-24);
  }
}

}  // namespace
}  // namespace edgekit::testing

EDGEKIT_TEST_MAIN
