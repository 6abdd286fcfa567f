#include "ops/sampling.h"

#include <stdlib.h>
#include <string.h>

#include <algorithm>

namespace edgekit::ops {
namespace {

constexpr size_t kFirstGuess = 256;    // candidates looked at when only top-p limits them
constexpr size_t kSortedAtOnce = 64;  // candidates that are sorted rather than halved

size_t strips_of(size_t n) { return (n + kStrip - 1) / kStrip; }

}  // namespace

Sampler::Sampler(const Ops& ops, size_t vocab, const SamplingOptions& options)
    : ops_(ops), vocab_(vocab), options_(options), state_(options.seed) {
  const size_t strips = strips_of(vocab);
  const size_t token_bytes = sizeof(Candidate) + 2 * sizeof(float) + sizeof(uint32_t) + 1;
  memory_ = calloc(1, vocab * token_bytes + 2 * strips * sizeof(float));
  if (memory_ == nullptr) {
    return;
  }
  candidates_ = static_cast<Candidate*>(memory_);
  weights_ = reinterpret_cast<float*>(candidates_ + vocab);
  penalized_ = weights_ + vocab;
  maxima_ = penalized_ + vocab;
  seen_ = reinterpret_cast<uint32_t*>(maxima_ + 2 * strips);
  is_seen_ = reinterpret_cast<uint8_t*>(seen_ + vocab);
}

Sampler::~Sampler() { free(memory_); }

void Sampler::see(uint32_t token) {
  if (token < vocab_ && is_seen_[token] == 0) {
    is_seen_[token] = 1;
    seen_[seen_count_++] = token;
  }
}

float Sampler::draw() {
  state_ += 0x9e3779b97f4a7c15u;
  uint64_t z = state_;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  z ^= z >> 31;
  return float(z >> 40) * 0x1p-24f;
}

uint32_t find_largest(const Ops& ops, size_t n, const float* logits, float* maxima) {
  ops.strip_maxima(n, logits, maxima);
  size_t best = 0;
  for (size_t strip = 1; strip < strips_of(n); ++strip) {
    best = maxima[strip] > maxima[best] ? strip : best;
  }
  const size_t end = std::min(n, (best + 1) * kStrip);
  for (size_t i = best * kStrip; i < end; ++i) {
    if (logits[i] == maxima[best]) {
      return uint32_t(i);
    }
  }
  return 0;
}

uint32_t Sampler::likeliest(const float* logits) { return find_largest(ops_, vocab_, logits, maxima_); }

// The `wanted` likeliest tokens in falling order. The wanted-th largest of the strips' maxima is a lower bound for the
// wanted-th largest logit, so only strips that reach it are looked into.
size_t Sampler::collect(const float* logits, size_t wanted) {
  const size_t strips = strips_of(vocab_);
  ops_.strip_maxima(vocab_, logits, maxima_);
  float bound = -__builtin_inff();
  if (wanted < strips) {
    float* order = maxima_ + strips;
    for (size_t strip = 0; strip < strips; ++strip) {
      order[strip] = maxima_[strip] == maxima_[strip] ? maxima_[strip] : -__builtin_inff();
    }
    std::nth_element(order, order + (wanted - 1), order + strips, [](float a, float b) { return a > b; });
    bound = order[wanted - 1];
  }
  size_t count = 0;
  for (size_t strip = 0; strip < strips; ++strip) {
    if (maxima_[strip] < bound) {
      continue;
    }
    const size_t end = std::min(vocab_, (strip + 1) * kStrip);
    for (size_t token = strip * kStrip; token < end; ++token) {
      if (logits[token] >= bound) {
        candidates_[count++] = {logits[token], uint32_t(token)};
      }
    }
  }
  const size_t kept = std::min(wanted, count);
  std::partial_sort(candidates_, candidates_ + kept, candidates_ + count, is_likelier);
  return kept;
}

bool Sampler::is_likelier(const Candidate& a, const Candidate& b) {
  return a.weight > b.weight || (a.weight == b.weight && a.token < b.token);
}

// Turns the logits of candidates, the likeliest first, into weights; returns their sum.
float Sampler::weigh(size_t candidates, float factor) {
  for (size_t i = 0; i < candidates; ++i) {
    weights_[i] = candidates_[i].weight;
  }
  const float sum = ops_.exponentials(candidates, weights_, candidates_[0].weight, factor, weights_);
  for (size_t i = 0; i < candidates; ++i) {
    candidates_[i].weight = weights_[i];
  }
  return sum;
}

// The least number of likeliest candidates whose weights reach `target` (all, if none do), put first, and their sum.
// Halves what it looks at: takes as long as looking at each candidate a few times, not as sorting them.
size_t Sampler::reach(size_t candidates, float target, float* reached) {
  size_t begin = 0;
  size_t end = candidates;
  float sum = 0.0f;
  while (end - begin > kSortedAtOnce) {
    const size_t middle = begin + (end - begin) / 2;
    std::nth_element(candidates_ + begin, candidates_ + middle, candidates_ + end, is_likelier);
    float likelier_half = 0.0f;
    for (size_t i = begin; i < middle; ++i) {
      likelier_half += candidates_[i].weight;
    }
    if (sum + likelier_half >= target) {
      end = middle;
    } else {
      sum += likelier_half;
      begin = middle;
    }
  }
  std::sort(candidates_ + begin, candidates_ + end, is_likelier);
  while (begin < end) {
    sum += candidates_[begin++].weight;
    if (sum >= target) {
      break;
    }
  }
  *reached = sum;
  return begin;
}

// Draws among the fewest of the likeliest candidates that hold top_p of `whole`.
uint32_t Sampler::draw_among(size_t candidates, float whole) {
  float total = 0.0f;
  const size_t kept = reach(candidates, options_.top_p * whole, &total);
  float reached = 0.0f;
  return candidates_[reach(kept, draw() * total, &reached) - 1].token;
}

uint32_t Sampler::sample(const float* logits) {
  if (options_.repetition_penalty != 1.0f) {
    memcpy(penalized_, logits, vocab_ * sizeof(float));
    for (size_t i = 0; i < seen_count_; ++i) {
      float& logit = penalized_[seen_[i]];
      logit = logit > 0.0f ? logit / options_.repetition_penalty : logit * options_.repetition_penalty;
    }
    logits = penalized_;
  }
  if (!(options_.temperature > 0.0f)) {
    return likeliest(logits);
  }
  const float factor = 1.0f / options_.temperature;
  if (options_.top_k > 0 && options_.top_k < vocab_) {
    const size_t count = collect(logits, options_.top_k);
    return count == 0 ? 0 : draw_among(count, weigh(count, factor));  // 0: no logit is a number
  }
  const float highest = logits[likeliest(logits)];
  const float whole = ops_.exponentials(vocab_, logits, highest, factor, nullptr);
  const size_t count = collect(logits, std::min(kFirstGuess, vocab_));
  if (count == 0) {
    return 0;
  }
  if (weigh(count, factor) >= options_.top_p * whole) {
    return draw_among(count, whole);
  }
  ops_.exponentials(vocab_, logits, highest, factor, weights_);
  for (size_t token = 0; token < vocab_; ++token) {
    candidates_[token] = {weights_[token], uint32_t(token)};
  }
  return draw_among(vocab_, whole);
}

}  // namespace edgekit::ops
