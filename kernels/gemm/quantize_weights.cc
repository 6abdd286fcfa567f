// Weights to codes and scales, compiled once for every ISA. Sixteen scales are tried at once, one a lane, and each lane
// adds its errors weight by weight: no sum depends on the width of a vector, so every ISA finds the same codes.
#include "gemm/layout.h"
#include "gemm/quantize.h"

namespace edgekit::gemm::EDGEKIT_ISA_WORD {
namespace {

#if defined(__AVX512F__)
constexpr size_t kWidth = 16;
#elif defined(__AVX__)
constexpr size_t kWidth = 8;
#else
constexpr size_t kWidth = 4;
#endif
typedef float Vector __attribute__((vector_size(kWidth * sizeof(float))));
typedef uint32_t Bits __attribute__((vector_size(kWidth * sizeof(float))));

constexpr size_t kLanes = 16;
constexpr size_t kVectors = kLanes / kWidth;
constexpr size_t kMostCandidates = 256;
constexpr float kRounder = 0x1.8p23f;     // added and taken off, rounds |x| < 2^22 to a whole number, ties to even
constexpr float kLeastScale = 0x1p-100f;  // 1 / scale is finite above

// Codes low..high stand for levels code + offset. Scales are tried from `most` down to `least` times max|w| / |lowest
// level|: below 1 the largest weights are clipped; at most = |low| / high the shorter side of the levels clips nothing.
struct Levels {
  float low;
  float high;
  float offset;
  float most;
  float least;
  bool lopsided;  // one level more below zero than above: the sign of the scale matters
};

// The spans hold the best scale for groups of 32 to 128 normal or Laplace weights, with room on both sides.
Levels levels_of(edgekit_format format) {
  switch (format) {
    case EDGEKIT_Q8: return {-127, 127, 0, 1, 0.85f, false};
    case EDGEKIT_Q4: return {-8, 7, 0, 8.0f / 7.0f, 0.55f, true};
    case EDGEKIT_Q3: return {-4, 3, 0, 4.0f / 3.0f, 0.4f, true};
    case EDGEKIT_Q2: return {-2, 1, 0.5f, 1.1f, 0.25f, false};
    default: return {-1, 1, 0, 1, 0.2f, false};  // t2
  }
}

// What every scale to try is, divided by max|w| / |lowest level|; made once for a call.
struct Candidates {
  float factors[kMostCandidates];
  size_t count;  // a multiple of 16
};

// First 1, for weights that already are levels, then the span from its wide end. Lopsided levels have every scale
// twice, positive and negative. What is left of the last 16 repeats the last.
void fill(Candidates* candidates, size_t steps, const Levels& levels) {
  const size_t signs = levels.lopsided ? 2 : 1;
  const size_t wanted = smaller(steps * signs, kMostCandidates);
  candidates->count = (wanted + kLanes - 1) / kLanes * kLanes;
  for (size_t i = 0; i < candidates->count; i++) {
    const size_t index = smaller(i, wanted - 1);
    const size_t step = index / signs;
    const float part = step < 2 ? 0.0f : static_cast<float>(step - 1) / static_cast<float>(wanted / signs - 2);
    const float factor = step == 0 ? 1.0f : levels.most - (levels.most - levels.least) * part;
    candidates->factors[i] = index % signs == 1 ? -factor : factor;
  }
}

// The nearest bf16, ties to even.
inline Vector rounded_to_bf16(Vector value) {
  const Bits bits = (Bits)value;
  return (Vector)((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000);
}

// Sixteen scales and the squared error of a group with each.
struct Tried {
  Vector scale[kVectors];
  Vector error[kVectors];
};

inline Tried try_scales(size_t count, const float* weights, const float* importance, const Levels& levels, float widest,
                        const float* factors) {
  Tried tried = {};
  Vector inverse[kVectors];
  __builtin_memcpy(tried.scale, factors, sizeof tried.scale);
  for (size_t v = 0; v < kVectors; v++) {
    tried.scale[v] = rounded_to_bf16(tried.scale[v] * widest);
    inverse[v] = 1.0f / tried.scale[v];
  }
  const Vector low = Vector{} + levels.low, high = Vector{} + levels.high;
  for (size_t i = 0; i < count; i++) {
    const float weight = weights[i];
    const float counts = importance == nullptr ? 1.0f : importance[i];
    for (size_t v = 0; v < kVectors; v++) {
      Vector code = weight * inverse[v] - levels.offset;
      code = code < low ? low : code;
      code = code > high ? high : code;
      code = (code + kRounder) - kRounder;
      const Vector error = weight - (code + levels.offset) * tried.scale[v];
      tried.error[v] += error * error * counts;
    }
  }
  return tried;
}

float largest_magnitude(size_t count, const float* weights) {
  float largest = 0;
  for (size_t i = 0; i < count; i++) {
    const float magnitude = __builtin_fabsf(weights[i]);
    largest = magnitude > largest ? magnitude : largest;
  }
  return largest;
}

// The best scale for the group, or 0 if the weights are too small to have one or not finite.
float best_scale(size_t count, const float* weights, const float* importance, const Candidates& candidates,
                 const Levels& levels) {
  const float widest = largest_magnitude(count, weights) / -(levels.low + levels.offset);
  if (!(widest * levels.least >= kLeastScale)) return 0;
  Tried best = {};
  for (size_t v = 0; v < kVectors; v++) best.error[v] = Vector{} + __builtin_inff();
  for (size_t first = 0; first < candidates.count; first += kLanes) {
    const Tried tried = try_scales(count, weights, importance, levels, widest, candidates.factors + first);
    for (size_t v = 0; v < kVectors; v++) {
      best.scale[v] = tried.error[v] < best.error[v] ? tried.scale[v] : best.scale[v];
      best.error[v] = tried.error[v] < best.error[v] ? tried.error[v] : best.error[v];
    }
  }
  float scales[kLanes], errors[kLanes];
  __builtin_memcpy(scales, best.scale, sizeof scales);
  __builtin_memcpy(errors, best.error, sizeof errors);
  size_t lane = 0;
  for (size_t i = 1; i < kLanes; i++) lane = errors[i] < errors[lane] ? i : lane;
  return scales[lane];
}

void round_weights(size_t count, const float* weights, float scale, const Levels& levels, int8_t* codes) {
  const float inverse = 1.0f / scale;
  for (size_t i = 0; i < count; i++) {
    float code = weights[i] * inverse - levels.offset;
    code = code < levels.low ? levels.low : code;
    code = code > levels.high ? levels.high : code;
    codes[i] = static_cast<int8_t>((code + kRounder) - kRounder);
  }
}

}  // namespace

void quantize_weights(edgekit_format format, size_t n, size_t k, size_t group, size_t steps, const float* weights,
                      const float* importance, int8_t* codes, uint16_t* scales) {
  const Levels levels = levels_of(format);
  Candidates candidates;
  fill(&candidates, steps, levels);
  for (size_t row = 0; row < n; row++, weights += k, codes += k) {
    for (size_t p = 0; p < k; p += group) {
      const size_t count = smaller(group, k - p);
      const float* of_group = importance == nullptr ? nullptr : importance + p;
      const float scale = best_scale(count, weights + p, of_group, candidates, levels);
      *scales++ = static_cast<uint16_t>(__builtin_bit_cast(uint32_t, scale) >> 16);
      if (scale != 0) {
        round_weights(count, weights + p, scale, levels, codes + p);
      } else {
        for (size_t i = 0; i < count; i++) codes[p + i] = 0;
      }
    }
  }
}

}  // namespace edgekit::gemm::EDGEKIT_ISA_WORD
