// The portable source of ops.h, included by one file an ISA after it has named the namespace and the lanes.

namespace edgekit::ops::EDGEKIT_ISA_WORD {
namespace {

#include "ops/lanes.h"

constexpr float kMinusInfinity = -__builtin_inff();

// The first n < 16 elements, then zeros.
inline Lanes load_some(size_t n, const float* x) {
  float padded[kLanes] = {};
  for (size_t i = 0; i < n; ++i) {
    padded[i] = x[i];
  }
  return load(padded);
}

inline void store_some(size_t n, float* x, Lanes a) {
  float padded[kLanes];
  store(padded, a);
  for (size_t i = 0; i < n; ++i) {
    x[i] = padded[i];
  }
}

// Calls operation(lanes of x...) for sixteen elements at a time, the last ones padded with zeros.
template <typename Operation>
inline void for_each_16(size_t n, const Operation& operation) {
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    operation(i, kLanes);
  }
  if (i < n) {
    operation(i, n - i);
  }
}

inline Lanes load_up_to(size_t count, const float* x) { return count == kLanes ? load(x) : load_some(count, x); }

inline void store_up_to(size_t count, float* x, Lanes a) {
  if (count == kLanes) {
    store(x, a);
  } else {
    store_some(count, x, a);
  }
}

// e^x to about one unit in the last place; 0 below -87 (also for -infinity and not-a-number), e^88 above 88.
// x = n ln 2 + r with |r| <= ln(2) / 2; ln 2 in two parts, the first with 9 trailing zero bits so that n times it is
// exact; e^r by its Taylor series, whose remainder r^8 / 8! is below 2^-27.
inline Lanes exponential(Lanes x) {
  const Lanes lowest = broadcast(-87.0f);
  const Lanes clamped = minimum(maximum(x, lowest), broadcast(88.0f));
  const Lanes magic = broadcast(0x1.8p23f);  // adding it rounds to an integer, kept in the low bits
  const Lanes shifted = fma(clamped, broadcast(0x1.715476p0f), magic);
  const Lanes n = subtract(shifted, magic);
  Lanes r = fma(n, broadcast(-0x1.62e400p-1f), clamped);
  r = fma(n, broadcast(-0x1.7f7d1cp-20f), r);
  Lanes p = broadcast(1.0f / 5040.0f);
  p = fma(p, r, broadcast(1.0f / 720.0f));
  p = fma(p, r, broadcast(1.0f / 120.0f));
  p = fma(p, r, broadcast(1.0f / 24.0f));
  p = fma(p, r, broadcast(1.0f / 6.0f));
  p = fma(p, r, broadcast(0.5f));
  p = fma(p, r, broadcast(1.0f));
  p = fma(p, r, broadcast(1.0f));
  return zero_below(x, lowest, multiply(p, exponent_from_low_bits(shifted)));
}

void rms_norm(size_t k, const float* x, const float* weight, float eps, float* out) {
  Lanes squares = broadcast(0.0f);
  for_each_16(k, [&](size_t i, size_t count) {
    const Lanes value = load_up_to(count, x + i);
    squares = fma(value, value, squares);
  });
  const Lanes inverse = broadcast(1.0f / __builtin_sqrtf(sum(squares) / float(k) + eps));
  for_each_16(k, [&](size_t i, size_t count) {
    const Lanes value = multiply(load_up_to(count, x + i), inverse);
    store_up_to(count, out + i, multiply(value, load_up_to(count, weight + i)));
  });
}

void add_to(size_t n, const float* x, float* y) {
  for_each_16(n, [&](size_t i, size_t count) {
    store_up_to(count, y + i, add(load_up_to(count, y + i), load_up_to(count, x + i)));
  });
}

void silu_multiply(size_t pairs, const float* alternating, float* out) {
  const Lanes one = broadcast(1.0f);
  const Lanes zero = broadcast(0.0f);
  const Lanes lowest = broadcast(-87.0f);
  for (size_t pair = 0; pair < pairs; ++pair) {
    const Lanes gate = load(alternating + 2 * pair * kLanes);
    const Lanes up = load(alternating + (2 * pair + 1) * kLanes);
    const Lanes activated = divide(gate, add(one, exponential(subtract(zero, gate))));
    // Below -87 the exponential stops growing; the result is 0 to more than float's precision.
    store(out + pair * kLanes, multiply(zero_below(gate, lowest, activated), up));
  }
}

void rotate(size_t head_dim, const float* cosine, const float* sine, float* head) {
  const size_t half = head_dim / 2;
  for_each_16(half, [&](size_t i, size_t count) {
    const Lanes c = load_up_to(count, cosine + i);
    const Lanes s = load_up_to(count, sine + i);
    const Lanes a = load_up_to(count, head + i);
    const Lanes b = load_up_to(count, head + half + i);
    store_up_to(count, head + i, subtract(multiply(a, c), multiply(b, s)));
    store_up_to(count, head + half + i, add(multiply(b, c), multiply(a, s)));
  });
}

inline Lanes within_half_range(Lanes x) {
  return minimum(maximum(x, broadcast(-65504.0f)), broadcast(65504.0f));
}

void append_key(size_t head_dim, const float* key, size_t lane, uint16_t* keys) {
  for_each_16(head_dim, [&](size_t i, size_t count) {
    uint16_t halves[kLanes];
    store_half(halves, within_half_range(load_up_to(count, key + i)));
    for (size_t j = 0; j < count; ++j) {
      keys[(i + j) * kLanes + lane] = halves[j];
    }
  });
}

void append_value(size_t head_dim, const float* value, uint16_t* row) {
  for_each_16(head_dim, [&](size_t i, size_t count) {
    store_half(row + i, within_half_range(load_up_to(count, value + i)));
  });
}

#include "ops/attend_body.h"

void merge(size_t stride, const float* partial, float* into) {
  if (!(partial[stride + 1] > 0.0f)) {
    return;  // this block held no position that the query sees
  }
  const float largest_score = into[stride] > partial[stride] ? into[stride] : partial[stride];
  float differences[kLanes] = {into[stride] - largest_score, partial[stride] - largest_score};
  store(differences, exponential(load(differences)));
  const Lanes before = broadcast(differences[0]);
  const Lanes here = broadcast(differences[1]);
  for (size_t d = 0; d < stride; d += kLanes) {
    store(into + d, fma(load(partial + d), here, multiply(load(into + d), before)));
  }
  into[stride] = largest_score;
  into[stride + 1] = __builtin_fmaf(partial[stride + 1], differences[1], into[stride + 1] * differences[0]);
}

void finish_attention(size_t head_dim, size_t stride, const float* merged, float* out) {
  const Lanes total = broadcast(merged[stride + 1]);
  for_each_16(head_dim, [&](size_t i, size_t count) { store_up_to(count, out + i, divide(load(merged + i), total)); });
}

void strip_maxima(size_t n, const float* x, float* maxima) {
  for (size_t strip = 0; strip * kStrip < n; ++strip) {
    const float* from = x + strip * kStrip;
    const size_t count = n - strip * kStrip < kStrip ? n - strip * kStrip : kStrip;
    if (count == kStrip) {
      maxima[strip] = largest(maximum(maximum(load(from), load(from + 16)), maximum(load(from + 32), load(from + 48))));
      continue;
    }
    float highest = kMinusInfinity;
    for (size_t i = 0; i < count; ++i) {
      highest = highest > from[i] ? highest : from[i];
    }
    maxima[strip] = highest;
  }
}

float exponentials(size_t n, const float* x, float shift, float factor, float* y) {
  const Lanes shifts = broadcast(shift);
  const Lanes factors = broadcast(factor);
  Lanes totals = broadcast(0.0f);
  float rest = 0.0f;
  for_each_16(n, [&](size_t i, size_t count) {
    const Lanes value = exponential(multiply(subtract(load_up_to(count, x + i), shifts), factors));
    if (y != nullptr) {
      store_up_to(count, y + i, value);
    }
    if (count == kLanes) {
      totals = add(totals, value);
      return;
    }
    float last[kLanes];
    store(last, value);
    for (size_t j = 0; j < count; ++j) {
      rest = rest + last[j];
    }
  });
  return sum(totals) + rest;
}

}  // namespace

extern const Ops kOps;
const Ops kOps = {
    EDGEKIT_ISA_NAME, rms_norm, add_to, silu_multiply,    rotate, append_key,  append_value,
    attend,           merge,    finish_attention, strip_maxima, exponentials,
};

}  // namespace edgekit::ops::EDGEKIT_ISA_WORD
