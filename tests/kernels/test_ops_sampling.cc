// Sampling: which tokens may come, how often they do, and that a seed fixes them.
#include <cmath>
#include <vector>

#include "check.h"
#include "edgekit/cpu.h"
#include "ops/sampling.h"
#include "program_builder.h"

namespace edgekit::testing {
namespace {

using ops::Sampler;
using ops::SamplingOptions;

const ops::Ops& best() { return ops::choose_ops(edgekit_cpu_features()); }

std::vector<float> random_logits(size_t vocab) {
  Random random(5);
  std::vector<float> logits(vocab);
  for (float& logit : logits) logit = 6.0f * random.uniform();
  return logits;
}

std::vector<uint32_t> draw(const std::vector<float>& logits, const SamplingOptions& options, size_t count,
                           const ops::Ops& set = best()) {
  Sampler sampler(set, logits.size(), options);
  std::vector<uint32_t> tokens;
  for (size_t i = 0; i < count; i++) tokens.push_back(sampler.sample(logits.data()));
  return tokens;
}

// Share of each token among `count` draws.
std::vector<double> shares(const std::vector<float>& logits, const SamplingOptions& options, size_t count) {
  std::vector<double> found(logits.size());
  for (const uint32_t token : draw(logits, options, count)) found[token] += 1.0 / static_cast<double>(count);
  return found;
}

// Five standard deviations of a share that is p in truth.
double spread(double p, size_t count) { return 5 * std::sqrt(p * (1 - p) / static_cast<double>(count)) + 1e-9; }

TEST(temperature_zero_takes_the_likeliest_and_the_first_of_equals) {
  for (const size_t vocab : {1u, 63u, 64u, 65u, 1000u}) {
    std::vector<float> logits(vocab, -1.0f);
    logits[vocab / 2] = 2.0f;
    logits[vocab - 1] = 2.0f;
    SamplingOptions options;
    options.temperature = 0;
    CHECK(draw(logits, options, 1)[0] == vocab / 2);
  }
}

TEST(shares_are_the_softmax_at_the_temperature) {
  const std::vector<float> logits = {0.0f, 1.0f, 2.0f, 3.0f};
  SamplingOptions options;
  options.temperature = 2.0f;
  options.top_k = 0;
  options.top_p = 1.0f;
  constexpr size_t kDraws = 40000;
  const std::vector<double> found = shares(logits, options, kDraws);
  const double total = 1 + std::exp(0.5) + std::exp(1.0) + std::exp(1.5);
  for (size_t i = 0; i < 4; i++) {
    const double expected = std::exp(0.5 * static_cast<double>(i)) / total;
    CHECK_THAT(std::fabs(found[i] - expected) < spread(expected, kDraws), "token %zu: %g", i, found[i]);
  }
}

TEST(top_k_keeps_the_k_likeliest) {
  const std::vector<float> logits = random_logits(5000);
  SamplingOptions options;
  options.temperature = 5.0f;
  options.top_k = 3;
  options.top_p = 1.0f;
  std::vector<size_t> best_three;
  for (int i = 0; i < 3; i++) {
    size_t best_token = SIZE_MAX;
    for (size_t token = 0; token < logits.size(); token++) {
      bool taken = false;
      for (const size_t other : best_three) taken = taken || other == token;
      if (!taken && (best_token == SIZE_MAX || logits[token] > logits[best_token])) best_token = token;
    }
    best_three.push_back(best_token);
  }
  const std::vector<double> found = shares(logits, options, 3000);
  double together = 0;
  for (const size_t token : best_three) {
    CHECK(found[token] > 0.2);
    together += found[token];
  }
  CHECK(std::fabs(together - 1) < 1e-9);
}

TEST(top_p_keeps_the_fewest_tokens_that_hold_the_share) {
  // 0.5, 0.25, 0.125, 0.125: 0.7 of it takes the first two.
  const std::vector<float> logits = {std::log(0.125f), std::log(0.5f), std::log(0.25f), std::log(0.125f)};
  for (const uint32_t top_k : {0u, 4u}) {
    SamplingOptions options;
    options.temperature = 1.0f;
    options.top_k = top_k;
    options.top_p = 0.7f;
    constexpr size_t kDraws = 20000;
    const std::vector<double> found = shares(logits, options, kDraws);
    CHECK(found[0] == 0 && found[3] == 0);
    CHECK(std::fabs(found[1] - 2.0 / 3) < spread(2.0 / 3, kDraws));
    options.top_p = 0.0f;
    CHECK(std::fabs(shares(logits, options, 100)[1] - 1) < 1e-9);
  }
}

TEST(top_p_alone_reaches_past_its_first_guess_of_candidates) {
  // 2000 equal tokens: 0.9 of them are 1800.
  const std::vector<float> logits(2000, 1.0f);
  SamplingOptions options;
  options.temperature = 1.0f;
  options.top_k = 0;
  options.top_p = 0.9f;
  uint32_t highest = 0;
  for (const uint32_t token : draw(logits, options, 5000)) highest = token > highest ? token : highest;
  CHECK_THAT(highest > 1700 && highest <= 1801, "%u", highest);
}

TEST(a_seed_fixes_the_tokens_on_every_isa) {
  const std::vector<float> logits = random_logits(3000);
  SamplingOptions options;
  options.seed = 42;
  const std::vector<uint32_t> expected = draw(logits, options, 200);
  const ops::Ops* sets[4];
  const size_t count = ops::list_ops(edgekit_cpu_features(), sets);
  for (size_t i = 0; i < count; i++) CHECK(draw(logits, options, 200, *sets[i]) == expected);
  options.seed = 43;
  CHECK(draw(logits, options, 200) != expected);
}

TEST(the_generator_is_splitmix64) {
  // From seed 0 its first outputs are e220a8397b1dcdaf and 6e789e6aa1b965f4 (the reference implementation's): draws of
  // 0.8833 and 0.4315.
  std::vector<float> logits(1000, 0.0f);
  SamplingOptions options;
  options.temperature = 1.0f;
  options.top_k = 0;
  options.top_p = 1.0f;
  const std::vector<uint32_t> found = draw(logits, options, 2);
  CHECK_THAT(found[0] == 883 && found[1] == 431, "%u, %u", found[0], found[1]);
}

TEST(the_repetition_penalty_makes_seen_tokens_less_likely) {
  SamplingOptions options;
  options.temperature = 0;
  options.repetition_penalty = 2.0f;
  const float positive[] = {3.0f, 2.0f, 1.0f};
  Sampler sampler(best(), 3, options);
  CHECK(sampler.sample(positive) == 0);
  sampler.see(0);  // 3 / 2 < 2
  CHECK(sampler.sample(positive) == 1);
  sampler.see(1);  // 2 / 2 < 3 / 2
  sampler.see(1);
  CHECK(sampler.sample(positive) == 0);
  const float negative[] = {-1.0f, -1.5f, -3.0f};
  CHECK(sampler.sample(negative) == 0);  // -1 * 2 > -1.5 * 2
  const float mixed[] = {-1.0f, -5.0f, -1.5f};
  CHECK(sampler.sample(mixed) == 2);  // -1 * 2 < -1.5
  sampler.see(99);  // not in the vocabulary: nothing
}

TEST(logits_that_are_not_numbers_still_give_a_token) {
  for (const float temperature : {0.0f, 1.0f}) {
    for (const uint32_t top_k : {0u, 2u}) {
      SamplingOptions options;
      options.temperature = temperature;
      options.top_k = top_k;
      std::vector<float> logits(300, NAN);
      CHECK(draw(logits, options, 1)[0] < 300);
      logits[7] = 1.0f;
      CHECK(draw(logits, options, 1)[0] < 300);
      for (float& logit : logits) logit = INFINITY;
      CHECK(draw(logits, options, 1)[0] < 300);
      for (float& logit : logits) logit = -INFINITY;
      CHECK(draw(logits, options, 1)[0] < 300);
    }
  }
}

}  // namespace
}  // namespace edgekit::testing

EDGEKIT_TEST_MAIN
