// Not the C library's cos and sin: those differ between libraries and compilers in the last bit.
#include "ops/rope.h"

namespace edgekit::ops {
namespace {

// pi / 2 in three parts; the first two have 33 bits, so that a whole number below 2^20 times either is exact.
constexpr double kHalfPi1 = 0x1.921fb544p+0;
constexpr double kHalfPi2 = 0x1.0b4611a6p-34;
constexpr double kHalfPi3 = 0x1.3198a2e037073p-69;
constexpr double kTwoOverPi = 0x1.45f306dc9c883p-1;
constexpr double kMostAngle = 1048576.0;

// Taylor series for |x| <= pi / 4; the first term left out is below 2^-55.
double sine_of_small(double x) {
  const double z = x * x;
  double p = -1.0 / 1307674368000.0;
  p = p * z + 1.0 / 6227020800.0;
  p = p * z - 1.0 / 39916800.0;
  p = p * z + 1.0 / 362880.0;
  p = p * z - 1.0 / 5040.0;
  p = p * z + 1.0 / 120.0;
  p = p * z - 1.0 / 6.0;
  return x + x * z * p;
}

double cosine_of_small(double x) {
  const double z = x * x;
  double p = 1.0 / 20922789888000.0;
  p = p * z - 1.0 / 87178291200.0;
  p = p * z + 1.0 / 479001600.0;
  p = p * z - 1.0 / 3628800.0;
  p = p * z + 1.0 / 40320.0;
  p = p * z - 1.0 / 720.0;
  p = p * z + 1.0 / 24.0;
  p = p * z - 0.5;
  return 1.0 + z * p;
}

}  // namespace

void rope_angles(size_t half, const float* inverse_frequency, float position, float factor, float* cosine,
                 float* sine) {
  for (size_t i = 0; i < half; ++i) {
    const float product = position * inverse_frequency[i];
    double angle = double(product);
    if (!(angle < kMostAngle && angle > -kMostAngle)) {
      angle = 0.0;  // damaged weights: any angle will do, but the conversion below must be defined
    }
    const double magic = 0x1.8p52;  // adding it rounds to a whole number
    const double turns = (angle * kTwoOverPi + magic) - magic;
    const double rest = ((angle - turns * kHalfPi1) - turns * kHalfPi2) - turns * kHalfPi3;
    const double s = sine_of_small(rest);
    const double c = cosine_of_small(rest);
    const int quadrant = int(static_cast<long long>(turns) & 3);
    const double cosines[4] = {c, -s, -c, s};
    const double sines[4] = {s, c, -s, -c};
    cosine[i] = float(cosines[quadrant]) * factor;
    sine[i] = float(sines[quadrant]) * factor;
  }
}

}  // namespace edgekit::ops
