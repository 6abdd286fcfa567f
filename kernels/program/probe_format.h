// The probe section of a program file, version 1. Little-endian. Written by edgekit/coherence.py from the float
// reference, read by edgekit-run; tests/test_coherence.py holds the two together.
//
//   ProbeHeader
//   sequences times:      u32 tokens; u32 first_scored; u32 ids[tokens]
//                         then for each position p in [first_scored, tokens), about the distribution that predicts
//                         ids[p] from the ids before it:
//                         f32 logp of ids[p]; u32 top_ids[top], likeliest first; f32 top_logp[top]
//   continuations times:  u32 tokens; u32 ids[tokens]: a prompt that is continued greedily
//
// Everything is 4-byte aligned. Logarithms are natural.
#pragma once

#include <stdint.h>

namespace edgekit::format {

constexpr uint32_t kProbeVersion = 1;

struct ProbeHeader {  // 64 bytes
  uint32_t version;
  uint32_t sequences;
  uint32_t top;  // 128, or the vocabulary if that is smaller
  uint32_t continuations;
  uint32_t continuation_tokens;  // how many tokens each prompt is continued by
  float reference_rep4;
  double reference_nll_sum;  // of all scored tokens
  uint64_t scored;           // how many those are
  uint8_t reserved[24];      // zero
};

static_assert(sizeof(ProbeHeader) == 64);

}  // namespace edgekit::format
