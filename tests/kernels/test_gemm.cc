// Every matrix kernel that this CPU can run, against a reference that works on the unpacked codes, bit for bit; every
// buffer ends at a page that faults.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "check.h"
#include "edgekit/cpu.h"
#include "edgekit/gemm.h"
#include "guarded.h"

namespace {

using edgekit::testing::Guarded;

struct Random {
  uint64_t state;
  uint32_t next() {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>(state >> 33);
  }
  int between(int low, int high) { return low + static_cast<int>(next() % static_cast<uint32_t>(high - low + 1)); }
  float real() { return static_cast<float>(between(-1000000, 1000000)) / 1000000.0f; }
};

struct Range {
  int low;
  int high;
};

Range codes_of(edgekit_format weights) {
  switch (weights) {
    case EDGEKIT_Q8: return {-127, 127};
    case EDGEKIT_Q4: return {-8, 7};
    case EDGEKIT_Q3: return {-4, 3};
    case EDGEKIT_Q2: return {-2, 1};
    default: return {-1, 1};
  }
}

bool is_float(edgekit_format weights) { return weights == EDGEKIT_F32 || weights == EDGEKIT_F16; }

float bf16_value(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

// f16 bits of a value that f16 holds exactly: whole multiples of 2^-10 below 1 in magnitude, or zero.
uint16_t half_bits(float value) {
  if (value == 0) return 0;
  int exponent;
  const float fraction = std::frexp(std::fabs(value), &exponent);  // in [0.5, 1)
  const uint32_t mantissa = static_cast<uint32_t>(std::ldexp(fraction, 11)) & 0x3ff;
  return static_cast<uint16_t>((value < 0 ? 0x8000 : 0) | (exponent + 14) << 10 | mantissa);
}

// How the codes are drawn. The extremes find sums that overflow: every product as large as it can be.
enum class Draw { kRandom, kLowest, kHighest };

struct Problem {
  size_t m, n, k, group;
  edgekit_format weights;
  Draw draw = Draw::kRandom;
};

// One product: operands, packed operands, and the expected result.
class Product {
 public:
  explicit Product(const Problem& problem)
      : p_(problem),
        integer_(!is_float(problem.weights)),
        groups_(integer_ ? (p_.k + p_.group - 1) / p_.group : 0),
        tiles_((p_.n + 15) / 16),
        codes_(tiles_ * edgekit_tile_code_bytes(p_.weights, p_.k)),
        scales_(tiles_ * groups_ * 16),
        a_codes_(integer_ ? p_.m * p_.k : 0),
        a_floats_(integer_ ? 0 : p_.m * p_.k),
        a_scale_(p_.m * groups_),
        a_sum_(p_.m * groups_),
        expected_(p_.m * tiles_ * 16) {
    Random random{p_.m * 1000003 + p_.n * 10007 + p_.k * 101 + p_.group + static_cast<size_t>(p_.weights)};
    if (integer_) draw_integers(random);
    else draw_floats(random);
  }

  // Runs the kernel on tiles [begin, end) and compares with the reference to the last bit.
  bool agrees(const edgekit_gemm_kernel& kernel, size_t begin, size_t end) {
    const size_t stride = (end - begin) * 16;
    Guarded<float> c(p_.m * stride);
    for (size_t i = 0; i < c.size(); i++) c[i] = NAN;
    edgekit_gemm_args args = {};
    args.m = p_.m;
    args.k = p_.k;
    args.group = p_.group;
    args.tile_begin = begin;
    args.tile_end = end;
    args.a = integer_ ? static_cast<const void*>(a_codes_.data()) : a_floats_.data();
    args.a_stride = p_.k;
    args.a_scale = a_scale_.data();
    args.a_sum = a_sum_.data();
    args.codes = codes_.data();
    args.scales = scales_.data();
    args.c = c.data();
    args.c_stride = stride;
    kernel.run(&args);
    for (size_t i = 0; i < p_.m; i++) {
      if (std::memcmp(&c[i * stride], &expected_[i * tiles_ * 16 + begin * 16], stride * sizeof(float)) != 0) {
        return false;
      }
    }
    return true;
  }

  size_t tiles() const { return tiles_; }

 private:
  int draw_code(Random& random, Range range) const {
    if (p_.draw == Draw::kLowest) return range.low;
    if (p_.draw == Draw::kHighest) return range.high;
    return random.between(range.low, range.high);
  }

  void draw_integers(Random& random) {
    const Range range = codes_of(p_.weights);
    std::vector<int8_t> codes(p_.n * p_.k);
    std::vector<uint16_t> scales(p_.n * groups_);
    for (auto& code : codes) code = static_cast<int8_t>(draw_code(random, range));
    for (auto& scale : scales) scale = static_cast<uint16_t>(random.between(0x3b00, 0x3d00));
    for (size_t i = 0; i < a_codes_.size(); i++) {
      a_codes_[i] = static_cast<int8_t>(p_.draw == Draw::kRandom ? random.between(-127, 127) : 127);
    }
    for (size_t i = 0; i < p_.m; i++) {
      for (size_t g = 0; g < groups_; g++) {
        a_scale_[i * groups_ + g] = 0.01f + 0.001f * random.real();
        int32_t sum = 0;
        for (size_t p = g * p_.group; p < p_.k && p < (g + 1) * p_.group; p++) sum += a_codes_[i * p_.k + p];
        a_sum_[i * groups_ + g] = sum;
      }
    }
    edgekit_pack_codes(p_.weights, p_.n, p_.k, codes.data(), codes_.data());
    edgekit_pack_scales(p_.n, groups_, scales.data(), scales_.data());
    for (size_t i = 0; i < p_.m; i++) {
      for (size_t j = 0; j < p_.n; j++) {
        expected_[i * tiles_ * 16 + j] = integer_dot(i, &codes[j * p_.k], &scales[j * groups_]);
      }
    }
  }

  // gemm.h, word for word.
  float integer_dot(size_t i, const int8_t* codes, const uint16_t* scales) const {
    const bool halves = p_.weights == EDGEKIT_Q2;
    float c = 0;
    for (size_t g = 0; g < groups_; g++) {
      int32_t sum = 0;
      for (size_t p = g * p_.group; p < p_.k && p < (g + 1) * p_.group; p++) {
        sum += a_codes_[i * p_.k + p] * (halves ? 2 * codes[p] + 1 : codes[p]);
      }
      const float w_scale = halves ? bf16_value(scales[g]) / 2 : bf16_value(scales[g]);
      c = std::fma(static_cast<float>(sum), a_scale_[i * groups_ + g] * w_scale, c);
    }
    return c;
  }

  void draw_floats(Random& random) {
    std::vector<float> weights(p_.n * p_.k);
    for (auto& weight : weights) weight = static_cast<float>(random.between(-1023, 1023)) / 1024.0f;
    for (size_t i = 0; i < a_floats_.size(); i++) a_floats_[i] = random.real();
    std::vector<uint16_t> halves(weights.size());
    for (size_t i = 0; i < weights.size(); i++) halves[i] = half_bits(weights[i]);
    const bool wide = p_.weights == EDGEKIT_F32;
    edgekit_pack_codes(p_.weights, p_.n, p_.k,
                       wide ? static_cast<const void*>(weights.data()) : static_cast<const void*>(halves.data()),
                       codes_.data());
    for (size_t i = 0; i < p_.m; i++) {
      for (size_t j = 0; j < p_.n; j++) {
        float c = 0;
        for (size_t p = 0; p < p_.k; p++) c = std::fma(a_floats_[i * p_.k + p], weights[j * p_.k + p], c);
        expected_[i * tiles_ * 16 + j] = c;
      }
    }
  }

  Problem p_;
  bool integer_;
  size_t groups_;
  size_t tiles_;
  Guarded<uint8_t> codes_;
  Guarded<uint16_t> scales_;
  Guarded<int8_t> a_codes_;
  Guarded<float> a_floats_;
  Guarded<float> a_scale_;
  Guarded<int32_t> a_sum_;
  std::vector<float> expected_;
};

// Calls `check` for every kernel of that format that this CPU can run.
template <class Check>
void for_each_kernel(edgekit_format weights, const Check& check) {
  size_t count = 0;
  const edgekit_gemm_kernel* kernels = edgekit_gemm_kernels(&count);
  for (size_t i = 0; i < count; i++) {
    const bool runs = (kernels[i].features & ~edgekit_cpu_features()) == 0;
    if (kernels[i].weights == weights && runs) check(kernels[i]);
  }
}

void check_problem(const Problem& problem) {
  Product product(problem);
  for_each_kernel(problem.weights, [&](const edgekit_gemm_kernel& kernel) {
    CHECK_THAT(product.agrees(kernel, 0, product.tiles()), "%s m %zu n %zu k %zu group %zu draw %d", kernel.name,
               problem.m, problem.n, problem.k, problem.group, static_cast<int>(problem.draw));
  });
}

constexpr edgekit_format kIntegers[] = {EDGEKIT_Q8, EDGEKIT_Q4, EDGEKIT_Q3, EDGEKIT_Q2, EDGEKIT_T2};
constexpr size_t kGroups[] = {32, 64, 128};

TEST(integer_kernels_equal_the_reference_for_rows_around_every_tile) {
  for (edgekit_format weights : kIntegers) {
    for (size_t m : {1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 14, 15, 29}) check_problem({m, 48, 160, 64, weights});
  }
}

TEST(integer_kernels_equal_the_reference_for_depths_around_every_group) {
  for (edgekit_format weights : kIntegers) {
    for (size_t group : kGroups) {
      for (size_t k : {32, 64, 96, 128, 160, 192, 224, 256, 288, 480, 512, 544, 1024, 1184}) {
        check_problem({1, 32, k, group, weights});
        check_problem({5, 32, k, group, weights});
      }
    }
  }
}

TEST(integer_kernels_equal_the_reference_for_any_rows_of_several_stretches) {
  for (edgekit_format weights : kIntegers) {
    for (size_t m : {2, 3, 4, 7}) {
      for (size_t k : {1056, 2080}) check_problem({m, 48, k, 32, weights});
    }
  }
}

TEST(integer_kernels_equal_the_reference_for_rows_of_more_groups_than_a_kernel_keeps_biases_of) {
  for (edgekit_format weights : kIntegers) {
    for (size_t k : {8192, 8224, 16416}) check_problem({2, 32, k, 32, weights});  // 256, 257 and 513 groups
  }
}

TEST(integer_kernels_equal_the_reference_for_outputs_around_every_tile) {
  for (edgekit_format weights : kIntegers) {
    for (size_t n : {1, 15, 16, 17, 31, 32, 33, 47, 64, 65, 80, 113}) {
      check_problem({1, n, 96, 32, weights});
      check_problem({6, n, 96, 32, weights});
    }
  }
}

TEST(no_sum_overflows_where_every_product_is_as_large_as_it_can_be) {
  for (edgekit_format weights : kIntegers) {
    for (Draw draw : {Draw::kLowest, Draw::kHighest}) {
      for (size_t group : kGroups) {
        check_problem({1, 16, 256, group, weights, draw});
        check_problem({7, 32, 256, group, weights, draw});
      }
    }
  }
}

TEST(float_kernels_equal_the_reference_for_any_size) {
  for (edgekit_format weights : {EDGEKIT_F32, EDGEKIT_F16}) {
    for (size_t k : {1, 2, 3, 7, 8, 9, 31, 32, 33, 100}) check_problem({1, 80, k, 0, weights});
    for (size_t n : {1, 16, 17, 48, 64, 65, 81, 144}) check_problem({1, n, 40, 0, weights});
    for (size_t m : {2, 3, 4, 5, 6, 7, 11, 12, 13, 25}) check_problem({m, 50, 37, 0, weights});
  }
}

TEST(a_range_of_tiles_gives_that_part_of_the_result) {
  for (int format = EDGEKIT_F32; format <= EDGEKIT_T2; format++) {
    const edgekit_format weights = static_cast<edgekit_format>(format);
    for (size_t m : {1, 6}) {
      Product product({m, 16 * 7, 96, 32, weights});
      for_each_kernel(weights, [&](const edgekit_gemm_kernel& kernel) {
        CHECK_THAT(product.agrees(kernel, 2, 3), "%s", kernel.name);
        CHECK_THAT(product.agrees(kernel, 3, 6), "%s", kernel.name);
        CHECK_THAT(product.agrees(kernel, 1, 7), "%s", kernel.name);
        CHECK_THAT(product.agrees(kernel, 4, 4), "%s", kernel.name);
      });
    }
  }
}

TEST(a_row_of_the_table_names_what_it_is) {
  const char* words[] = {"f32", "f16", "q8", "q4", "q3", "q2", "t2"};  // by edgekit_format
  size_t count = 0;
  const edgekit_gemm_kernel* kernels = edgekit_gemm_kernels(&count);
  CHECK(count > 0);
  for (size_t i = 0; i < count; i++) {
    char activations[8], weights[8], result[8], isa[24];
    unsigned mr = 0, nr = 0, kr = 0;
    const int parts = std::sscanf(kernels[i].name, "gemm_%7[a-z0-9]_%7[a-z0-9]_%7[a-z0-9]_%ux%ux%u_%23s", activations,
                                  weights, result, &mr, &nr, &kr, isa);
    CHECK_THAT(parts == 7, "%s", kernels[i].name);
    CHECK_THAT(std::strcmp(weights, words[kernels[i].weights]) == 0, "%s", kernels[i].name);
    CHECK_THAT(std::strcmp(activations, is_float(kernels[i].weights) ? "f32" : "q8") == 0, "%s", kernels[i].name);
    CHECK_THAT(std::strcmp(result, "f32") == 0, "%s", kernels[i].name);
    CHECK_THAT(mr == kernels[i].mr && nr % 16 == 0, "%s", kernels[i].name);
    CHECK_THAT(edgekit_isa_features(isa) == kernels[i].features, "%s", kernels[i].name);
    CHECK_THAT(edgekit_gemm_find(kernels[i].name) == &kernels[i], "%s", kernels[i].name);
  }
}

TEST(a_kernel_is_there_for_every_format_and_set_of_features) {
  for (int format = EDGEKIT_F32; format <= EDGEKIT_T2; format++) {
    for (const char* isa : {"scalar", "neon", "neon_dotprod", "neon_i8mm", "avx2", "avx_vnni", "avx512_vnni"}) {
      for (size_t m : {1, 2, 100}) {
        const uint64_t features = edgekit_isa_features(isa);
        const edgekit_gemm_kernel* kernel = edgekit_gemm_choose(static_cast<edgekit_format>(format), m, features);
        CHECK_THAT(kernel != nullptr, "format %d on %s", format, isa);
        if (kernel == nullptr) continue;
        CHECK((kernel->features & ~features) == 0);
        CHECK((kernel->mr == 1) == (m == 1));
        if (features == 0 || (features & ~edgekit_cpu_features()) == 0) CHECK(kernel->run != nullptr);
      }
    }
  }
}

TEST(the_best_kernel_is_chosen) {
  const auto chosen = [](edgekit_format weights, size_t m, uint64_t features, const char* name) {
    const edgekit_gemm_kernel* kernel = edgekit_gemm_choose(weights, m, features);
    return CHECK_THAT(std::strcmp(kernel->name, name) == 0, "%s, not %s", kernel->name, name);
  };
  chosen(EDGEKIT_Q4, 1, 0, "gemm_q8_q4_f32_1x16x32_scalar");
  chosen(EDGEKIT_Q4, 1, ~uint64_t{0}, "gemm_q8_q4_f32_1x16x32_avx512_vnni");
  chosen(EDGEKIT_Q4, 2, ~uint64_t{0}, "gemm_q8_q4_f32_7x32x32_avx512_vnni");
  chosen(EDGEKIT_Q2, 1, edgekit_isa_features("avx_vnni"), "gemm_q8_q2_f32_1x16x32_avx_vnni");
  chosen(EDGEKIT_Q2, 1, edgekit_isa_features("avx2"), "gemm_q8_q2_f32_1x16x32_avx2");
  chosen(EDGEKIT_Q8, 9, edgekit_isa_features("neon"), "gemm_q8_q8_f32_4x16x32_neon");
  // Decode on i8mm is decode on dotprod: smmla needs two rows.
  chosen(EDGEKIT_T2, 1, edgekit_isa_features("neon_i8mm"), "gemm_q8_t2_f32_1x16x32_neon_dotprod");
  chosen(EDGEKIT_T2, 5, edgekit_isa_features("neon_i8mm"), "gemm_q8_t2_f32_4x16x32_neon_i8mm");
  chosen(EDGEKIT_F16, 1, edgekit_isa_features("avx_vnni"), "gemm_f32_f16_f32_1x64x1_avx2");
}

TEST(an_unknown_kernel_is_not_found) {
  CHECK(edgekit_gemm_find("gemm_q8_q5_f32_1x16x32_scalar") == nullptr);
  CHECK(edgekit_gemm_find("") == nullptr);
}

}  // namespace

EDGEKIT_TEST_MAIN
