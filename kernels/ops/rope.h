// Cosines and sines of rotary position embedding.
#pragma once

#include <stddef.h>

namespace edgekit::ops {

// cosine[i] = factor * cos(position * inverse_frequency[i]), sine likewise, for i < half. The angle is the product in
// float; its cosine and sine are computed in double and rounded once, the same on every machine.
void rope_angles(size_t half, const float* inverse_frequency, float position, float factor, float* cosine, float* sine);

}  // namespace edgekit::ops
