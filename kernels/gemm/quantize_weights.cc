// Weights to codes and scales, compiled once for every ISA. Sums run in 16 lanes and are folded in a fixed order, and
// products are rounded before they are added, so every ISA finds the same codes.
#include "gemm/layout.h"
#include "gemm/quantize.h"

namespace edgekit::gemm::EDGEKIT_ISA_WORD {
namespace {

typedef float Lanes __attribute__((vector_size(64)));
typedef int32_t LaneBits __attribute__((vector_size(64)));

constexpr size_t kLanes = 16;
constexpr size_t kMostVectors = 128 / kLanes;
constexpr float kRounder = 0x1.8p23f;  // rounds |x| < 2^22 to a whole number, ties to even

// Codes low..high stand for levels code + offset. Scales from `nearest` to `farthest` times max|w| / |lowest level| are
// tried: below 1 the largest weights are clipped, above 1 both ends fit the shorter side of the levels.
struct Levels {
  float low;
  float high;
  float offset;
  float nearest;
  float farthest;
  bool lopsided;  // one level more below zero than above
};

// The spans hold the best step for groups of 32 to 128 normal or Laplace weights with room on both sides.
Levels levels_of(edgekit_format format) {
  switch (format) {
    case EDGEKIT_Q8: return {-127, 127, 0, 0.85f, 1, false};
    case EDGEKIT_Q4: return {-8, 7, 0, 0.55f, 1.15f, true};
    case EDGEKIT_Q3: return {-4, 3, 0, 0.4f, 1.35f, true};
    case EDGEKIT_Q2: return {-2, 1, 0.5f, 0.25f, 1.1f, false};
    default: return {-1, 1, 0, 0.2f, 1, false};  // t2
  }
}

// A group in whole vectors; past its end weights and importance are zero.
struct Group {
  Lanes weights[kMostVectors];
  Lanes importance[kMostVectors];
  size_t vectors;
};

void load_group(size_t count, const float* weights, const float* importance, Group* group) {
  group->vectors = (count + kLanes - 1) / kLanes;
  for (size_t v = 0; v < group->vectors; v++) {
    for (size_t lane = 0; lane < kLanes; lane++) {
      const size_t i = v * kLanes + lane;
      group->weights[v][lane] = i < count ? weights[i] : 0.0f;
      group->importance[v][lane] = i >= count ? 0.0f : importance != nullptr ? importance[i] : 1.0f;
    }
  }
}

float largest_magnitude(const Group& group) {
  float largest = 0;
  for (size_t v = 0; v < group.vectors; v++) {
    for (size_t lane = 0; lane < kLanes; lane++) {
      const float magnitude = __builtin_fabsf(group.weights[v][lane]);
      largest = magnitude > largest ? magnitude : largest;
    }
  }
  return largest;
}

inline Lanes select(LaneBits condition, Lanes yes, Lanes no) {
  return (Lanes)((condition & (LaneBits)yes) | (~condition & (LaneBits)no));
}

inline Lanes nearest_codes(Lanes weights, float inverse, const Levels& levels) {
  Lanes codes = weights * inverse - levels.offset;
  // Clamped first: the rounder works up to 2^22 only, and the ends are whole numbers.
  codes = select(codes < levels.low, Lanes{} + levels.low, codes);
  codes = select(codes > levels.high, Lanes{} + levels.high, codes);
  return (codes + kRounder) - kRounder;
}

float fold(const Lanes& lanes) {
  float sum[kLanes];
  for (size_t lane = 0; lane < kLanes; lane++) sum[lane] = lanes[lane];
  for (size_t half = kLanes / 2; half > 0; half /= 2) {
    for (size_t lane = 0; lane < half; lane++) sum[lane] += sum[lane + half];
  }
  return sum[0];
}

float squared_error(const Group& group, float scale, const Levels& levels) {
  const float inverse = 1.0f / scale;
  Lanes sum = {};
  for (size_t v = 0; v < group.vectors; v++) {
    const Lanes codes = nearest_codes(group.weights[v], inverse, levels);
    const Lanes error = group.weights[v] - (codes + levels.offset) * scale;
    sum += error * error * group.importance[v];
  }
  return fold(sum);
}

// The nearest bf16, ties to even. `value` is finite.
uint16_t to_bf16(float value) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, value);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// The bits of the best scale for the group, or 0 if every weight is too small to have one.
uint16_t best_scale(const Group& group, size_t steps, const Levels& levels) {
  const float widest = largest_magnitude(group) / -(levels.low + levels.offset);
  uint16_t best = 0;
  float least_error = __builtin_inff();
  for (size_t step = 0; step < steps; step++) {
    // The largest first: steps = 1 tries max|w| / |lowest level| or, for lopsided levels, what clips nothing.
    const float part = steps == 1 ? 0.0f : static_cast<float>(step) / static_cast<float>(steps - 1);
    const float factor = levels.farthest - (levels.farthest - levels.nearest) * part;
    for (int side = 0; side <= (levels.lopsided ? 1 : 0); side++) {
      const uint16_t bits = to_bf16(side == 0 ? widest * factor : -(widest * factor));
      const float scale = from_bf16(bits);
      if (__builtin_fabsf(scale) < 0x1p-100f) continue;  // 1 / scale would not be finite
      const float error = squared_error(group, scale, levels);
      if (error < least_error) {
        least_error = error;
        best = bits;
      }
    }
  }
  return best;
}

void store_codes(size_t count, const Group& group, uint16_t scale, const Levels& levels, int8_t* codes) {
  const float inverse = 1.0f / from_bf16(scale);
  for (size_t v = 0; v < group.vectors; v++) {
    const Lanes vector = nearest_codes(group.weights[v], inverse, levels);
    for (size_t lane = 0; lane < kLanes && v * kLanes + lane < count; lane++) {
      codes[v * kLanes + lane] = static_cast<int8_t>(vector[lane]);
    }
  }
}

}  // namespace

void quantize_weights(edgekit_format format, size_t n, size_t k, size_t group, size_t steps, const float* weights,
                      const float* importance, int8_t* codes, uint16_t* scales) {
  const Levels levels = levels_of(format);
  Group loaded;
  for (size_t row = 0; row < n; row++, weights += k, codes += k) {
    for (size_t p = 0; p < k; p += group) {
      const size_t count = smaller(group, k - p);
      load_group(count, weights + p, importance == nullptr ? nullptr : importance + p, &loaded);
      const uint16_t scale = best_scale(loaded, steps, levels);
      *scales++ = scale;
      if (scale != 0) {
        store_codes(count, loaded, scale, levels, codes + p);
      } else {
        for (size_t i = 0; i < count; i++) codes[p + i] = 0;
      }
    }
  }
}

}  // namespace edgekit::gemm::EDGEKIT_ISA_WORD
