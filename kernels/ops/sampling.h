// Chooses the next token from logits.
//
// In this order: repetition penalty, temperature, top-k, top-p, draw. Equal logits are ordered by token id. The draws
// come from SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014) started
// at the seed; a draw is the upper 24 bits of its output divided by 2^24, one for each token sampled at a temperature
// above 0. Everything else is float arithmetic that is the same on every ISA, so a seed gives the same text everywhere.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "ops/ops.h"

namespace edgekit::ops {

struct SamplingOptions {
  float temperature = 0.8f;         // 0: always the likeliest token
  uint32_t top_k = 40;              // draw among so many likeliest tokens; 0: all
  float top_p = 0.95f;              // draw among the fewest likeliest tokens that hold this share
  float repetition_penalty = 1.0f;  // logits of tokens seen are divided by it if positive, multiplied if negative
  uint64_t seed = 0;
};

class Sampler {
 public:
  // `ops` and the sampler's memory are used until it is destroyed. ok() is false if there was no memory.
  Sampler(const Ops& ops, size_t vocab, const SamplingOptions& options);
  ~Sampler();
  Sampler(const Sampler&) = delete;
  Sampler& operator=(const Sampler&) = delete;

  bool ok() const { return memory_ != nullptr; }

  // Makes the penalty know a token of the text so far. Sampled tokens must be told, too.
  void see(uint32_t token);

  // logits[vocab] is left unchanged.
  uint32_t sample(const float* logits);

 private:
  struct Candidate {
    float weight;  // its logit, until it is a share of the whole
    uint32_t token;
  };

  uint32_t likeliest(const float* logits);
  size_t collect(const float* logits, size_t wanted);
  float weigh(size_t candidates, float factor);
  static bool is_likelier(const Candidate& a, const Candidate& b);
  size_t reach(size_t candidates, float target, float* reached);
  uint32_t draw_among(size_t candidates, float whole);
  float draw();

  const Ops& ops_;
  size_t vocab_;
  SamplingOptions options_;
  uint64_t state_;
  void* memory_ = nullptr;
  Candidate* candidates_ = nullptr;  // [vocab]
  float* weights_ = nullptr;         // [vocab]
  float* penalized_ = nullptr;       // [vocab]
  float* maxima_ = nullptr;          // [strips], then a copy that is reordered
  uint32_t* seen_ = nullptr;         // [vocab] each token once, in order of appearance
  uint8_t* is_seen_ = nullptr;       // [vocab]
  size_t seen_count_ = 0;
};

// The index of the largest of n logits, the first of equals. `maxima` is scratch for one float each kStrip of them.
uint32_t find_largest(const Ops& ops, size_t n, const float* logits, float* maxima);

}  // namespace edgekit::ops
