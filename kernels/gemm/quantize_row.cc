// Activations to int8, compiled once for every ISA. Only comparisons of integers, single products and sums of integers:
// the compiler may vectorise all of it without changing a bit.
#include "gemm/layout.h"
#include "gemm/quantize.h"

namespace edgekit::gemm::EDGEKIT_ISA_WORD {
namespace {

constexpr uint32_t kInfinity = 0x7f800000;
constexpr float kLeast = 0x1p-100f;  // keeps 127 / max finite

// Adding it to |x| < 2^22 leaves x rounded to a whole number, ties to even, in the low bits.
constexpr float kRounder = 0x1.8p23f;
constexpr int32_t kRounderBits = 0x4b400000;

// The bits of max|x|: the order of non-negative floats is that of their bits, with NaN above infinity.
inline uint32_t largest_magnitude(size_t count, const float* x) {
  int32_t largest = 0;
  for (size_t i = 0; i < count; i++) {
    const int32_t bits = __builtin_bit_cast(int32_t, x[i]) & 0x7fffffff;
    largest = bits > largest ? bits : largest;
  }
  return static_cast<uint32_t>(largest);
}

inline int32_t round_all(size_t count, const float* x, float factor, int8_t* codes) {
  int32_t sum = 0;
  for (size_t i = 0; i < count; i++) {
    const int32_t code = __builtin_bit_cast(int32_t, x[i] * factor + kRounder) - kRounderBits;
    codes[i] = static_cast<int8_t>(code);
    sum += code;
  }
  return sum;
}

// Quantizes `count` values of a group.
inline void quantize_group(size_t count, const float* x, int8_t* codes, float* scale, int32_t* sum) {
  const uint32_t bits = largest_magnitude(count, x);
  const float largest = __builtin_bit_cast(float, bits);
  *sum = 0;
  if (bits >= kInfinity || largest < kLeast) {
    *scale = bits >= kInfinity ? __builtin_nanf("") : 0.0f;
    for (size_t i = 0; i < count; i++) codes[i] = 0;
    return;
  }
  *scale = largest / 127.0f;
  *sum = round_all(count, x, 127.0f / largest, codes);
}

}  // namespace

void quantize_row(size_t k, size_t k_padded, size_t group, const float* x, int8_t* codes, float* scale,
                  int32_t* sum) {
  size_t p = 0;
  for (; p + group <= k; p += group) {
    // The constant tells the compiler how far to unroll.
    if (group == 32) quantize_group(32, x + p, codes + p, scale++, sum++);
    else quantize_group(group & ~size_t{63}, x + p, codes + p, scale++, sum++);
  }
  if (p < k) quantize_group(k - p, x + p, codes + p, scale++, sum++);
  for (size_t i = k; i < k_padded; i++) codes[i] = 0;
}

}  // namespace edgekit::gemm::EDGEKIT_ISA_WORD
