// Sixteen float lanes with the same arithmetic on every ISA: one 512-bit register, two of 256 bits, four of 128 bits,
// or an array. Every operation is one IEEE rounding a lane (fma is fused), so results agree to the last bit. A sum over
// lanes is always the tree lane l + lane l + 8, then + 4, + 2, + 1.
//
// Included once by each ISA's file, inside its namespace; uses no standard-library template.

#if defined(EDGEKIT_LANES_SCALAR)

struct Lanes {
  float v[16];
};

inline float float_of_bits(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

inline uint32_t bits_of_float(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  return bits;
}

#define EDGEKIT_EACH_LANE(expression) \
  Lanes r;                            \
  for (int l = 0; l < 16; ++l) {      \
    r.v[l] = (expression);            \
  }                                   \
  return r

inline Lanes load(const float* x) { EDGEKIT_EACH_LANE(x[l]); }
inline Lanes broadcast(float x) { EDGEKIT_EACH_LANE(x); }
inline Lanes add(Lanes a, Lanes b) { EDGEKIT_EACH_LANE(a.v[l] + b.v[l]); }
inline Lanes subtract(Lanes a, Lanes b) { EDGEKIT_EACH_LANE(a.v[l] - b.v[l]); }
inline Lanes multiply(Lanes a, Lanes b) { EDGEKIT_EACH_LANE(a.v[l] * b.v[l]); }
inline Lanes divide(Lanes a, Lanes b) { EDGEKIT_EACH_LANE(a.v[l] / b.v[l]); }
inline Lanes fma(Lanes a, Lanes b, Lanes c) { EDGEKIT_EACH_LANE(__builtin_fmaf(a.v[l], b.v[l], c.v[l])); }
inline Lanes maximum(Lanes a, Lanes b) { EDGEKIT_EACH_LANE(a.v[l] > b.v[l] ? a.v[l] : b.v[l]); }
inline Lanes minimum(Lanes a, Lanes b) { EDGEKIT_EACH_LANE(a.v[l] < b.v[l] ? a.v[l] : b.v[l]); }
inline Lanes zero_below(Lanes x, Lanes limit, Lanes y) { EDGEKIT_EACH_LANE(x.v[l] >= limit.v[l] ? y.v[l] : 0.0f); }
inline Lanes exponent_from_low_bits(Lanes t) {
  EDGEKIT_EACH_LANE(float_of_bits((bits_of_float(t.v[l]) << 23) + 0x3f800000u));
}

inline void store(float* x, Lanes a) {
  for (int l = 0; l < 16; ++l) {
    x[l] = a.v[l];
  }
}

inline float float_of_half(uint16_t half) {
  const uint32_t magnitude = half & 0x7fffu;
  const uint32_t sign = uint32_t(half & 0x8000u) << 16;
  float value;
  if (magnitude < 0x0400u) {
    value = float(magnitude) * 0x1p-24f;  // subnormal: exact
  } else if (magnitude >= 0x7c00u) {
    value = float_of_bits((magnitude << 13) | 0x7f800000u);
  } else {
    value = float_of_bits((magnitude << 13) + ((127u - 15u) << 23));
  }
  return float_of_bits(bits_of_float(value) | sign);
}

// To nearest, ties to even. Values of 65520 and more become infinite.
inline uint16_t half_of_float(float value) {
  const uint32_t bits = bits_of_float(value);
  const uint16_t sign = uint16_t((bits >> 16) & 0x8000u);
  uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) {
    return uint16_t(sign | 0x7e00u);
  }
  if (magnitude < 0x38800000u) {
    // Below 2^-14 a step is 2^-24, which is the step of floats at one half: the addition rounds.
    return uint16_t(sign | (bits_of_float(float_of_bits(magnitude) + 0.5f) - 0x3f000000u));
  }
  if (magnitude >= 0x477ff000u) {
    return uint16_t(sign | 0x7c00u);
  }
  magnitude += 0x0fffu + ((magnitude >> 13) & 1u);
  return uint16_t(sign | ((magnitude - 0x38000000u) >> 13));
}

inline Lanes load_half(const uint16_t* x) { EDGEKIT_EACH_LANE(float_of_half(x[l])); }

inline Lanes load_codes(const int8_t* x) { EDGEKIT_EACH_LANE(float(x[l])); }

inline void store_half(uint16_t* x, Lanes a) {
  for (int l = 0; l < 16; ++l) {
    x[l] = half_of_float(a.v[l]);
  }
}

inline float sum(Lanes a) {
  for (int width = 8; width > 0; width /= 2) {
    for (int l = 0; l < width; ++l) {
      a.v[l] = a.v[l] + a.v[l + width];
    }
  }
  return a.v[0];
}

inline float largest(Lanes a) {
  float most = a.v[0];
  for (int l = 1; l < 16; ++l) {
    most = most > a.v[l] ? most : a.v[l];
  }
  return most;
}

#undef EDGEKIT_EACH_LANE

constexpr int kTile = 4;

#elif defined(__AVX512F__)

struct Lanes {
  __m512 v;
};

inline Lanes load(const float* x) { return {_mm512_loadu_ps(x)}; }
inline Lanes broadcast(float x) { return {_mm512_set1_ps(x)}; }
inline void store(float* x, Lanes a) { _mm512_storeu_ps(x, a.v); }
inline Lanes add(Lanes a, Lanes b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Lanes subtract(Lanes a, Lanes b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Lanes multiply(Lanes a, Lanes b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Lanes divide(Lanes a, Lanes b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Lanes fma(Lanes a, Lanes b, Lanes c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Lanes maximum(Lanes a, Lanes b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Lanes minimum(Lanes a, Lanes b) { return {_mm512_min_ps(a.v, b.v)}; }
inline Lanes zero_below(Lanes x, Lanes limit, Lanes y) {
  return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x.v, limit.v, _CMP_GE_OQ), y.v)};
}
inline Lanes exponent_from_low_bits(Lanes t) {
  const __m512i shifted = _mm512_slli_epi32(_mm512_castps_si512(t.v), 23);
  return {_mm512_castsi512_ps(_mm512_add_epi32(shifted, _mm512_set1_epi32(0x3f800000)))};
}
inline Lanes load_half(const uint16_t* x) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)))};
}
inline Lanes load_codes(const int8_t* x) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x))))};
}
inline void store_half(uint16_t* x, Lanes a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(x), _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}
inline float sum(Lanes a) {
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline float largest(Lanes a) { return _mm512_reduce_max_ps(a.v); }

constexpr int kTile = 16;  // half of the registers accumulate

#elif defined(__AVX2__)

struct Lanes {
  __m256 low, high;
};

inline Lanes load(const float* x) { return {_mm256_loadu_ps(x), _mm256_loadu_ps(x + 8)}; }
inline Lanes broadcast(float x) {
  const __m256 v = _mm256_set1_ps(x);
  return {v, v};
}
inline void store(float* x, Lanes a) {
  _mm256_storeu_ps(x, a.low);
  _mm256_storeu_ps(x + 8, a.high);
}
inline Lanes add(Lanes a, Lanes b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
inline Lanes subtract(Lanes a, Lanes b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
inline Lanes multiply(Lanes a, Lanes b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
inline Lanes divide(Lanes a, Lanes b) { return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }
inline Lanes fma(Lanes a, Lanes b, Lanes c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
inline Lanes maximum(Lanes a, Lanes b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
inline Lanes minimum(Lanes a, Lanes b) { return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)}; }
inline Lanes zero_below(Lanes x, Lanes limit, Lanes y) {
  return {_mm256_and_ps(_mm256_cmp_ps(x.low, limit.low, _CMP_GE_OQ), y.low),
          _mm256_and_ps(_mm256_cmp_ps(x.high, limit.high, _CMP_GE_OQ), y.high)};
}
inline __m256 exponent_from_low_bits(__m256 t) {
  const __m256i shifted = _mm256_slli_epi32(_mm256_castps_si256(t), 23);
  return _mm256_castsi256_ps(_mm256_add_epi32(shifted, _mm256_set1_epi32(0x3f800000)));
}
inline Lanes exponent_from_low_bits(Lanes t) {
  return {exponent_from_low_bits(t.low), exponent_from_low_bits(t.high)};
}
inline Lanes load_half(const uint16_t* x) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x))),
          _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x + 8)))};
}
inline Lanes load_codes(const int8_t* x) {
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(x)))),
          _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(x + 8))))};
}
inline void store_half(uint16_t* x, Lanes a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(x), _mm256_cvtps_ph(a.low, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(x + 8), _mm256_cvtps_ph(a.high, _MM_FROUND_TO_NEAREST_INT));
}
inline float sum(Lanes a) {
  const __m256 eight = _mm256_add_ps(a.low, a.high);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline float largest(Lanes a) {
  const __m256 eight = _mm256_max_ps(a.low, a.high);
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

constexpr int kTile = 4;  // 8 of the 16 registers accumulate

#elif defined(__aarch64__)

struct Lanes {
  float32x4_t v[4];
};

#define EDGEKIT_EACH_QUARTER(expression) \
  Lanes r;                               \
  for (int i = 0; i < 4; ++i) {          \
    r.v[i] = (expression);               \
  }                                      \
  return r

inline Lanes load(const float* x) { EDGEKIT_EACH_QUARTER(vld1q_f32(x + 4 * i)); }
inline Lanes broadcast(float x) { EDGEKIT_EACH_QUARTER(vdupq_n_f32(x)); }
inline Lanes add(Lanes a, Lanes b) { EDGEKIT_EACH_QUARTER(vaddq_f32(a.v[i], b.v[i])); }
inline Lanes subtract(Lanes a, Lanes b) { EDGEKIT_EACH_QUARTER(vsubq_f32(a.v[i], b.v[i])); }
inline Lanes multiply(Lanes a, Lanes b) { EDGEKIT_EACH_QUARTER(vmulq_f32(a.v[i], b.v[i])); }
inline Lanes divide(Lanes a, Lanes b) { EDGEKIT_EACH_QUARTER(vdivq_f32(a.v[i], b.v[i])); }
inline Lanes fma(Lanes a, Lanes b, Lanes c) { EDGEKIT_EACH_QUARTER(vfmaq_f32(c.v[i], a.v[i], b.v[i])); }
inline Lanes maximum(Lanes a, Lanes b) { EDGEKIT_EACH_QUARTER(vmaxq_f32(a.v[i], b.v[i])); }
inline Lanes minimum(Lanes a, Lanes b) { EDGEKIT_EACH_QUARTER(vminq_f32(a.v[i], b.v[i])); }
inline Lanes zero_below(Lanes x, Lanes limit, Lanes y) {
  EDGEKIT_EACH_QUARTER(
      vreinterpretq_f32_u32(vandq_u32(vcgeq_f32(x.v[i], limit.v[i]), vreinterpretq_u32_f32(y.v[i]))));
}
inline Lanes exponent_from_low_bits(Lanes t) {
  EDGEKIT_EACH_QUARTER(vreinterpretq_f32_u32(
      vaddq_u32(vshlq_n_u32(vreinterpretq_u32_f32(t.v[i]), 23), vdupq_n_u32(0x3f800000u))));
}
inline Lanes load_half(const uint16_t* x) {
  EDGEKIT_EACH_QUARTER(vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(x + 4 * i))));
}
// 2^23 + 128 + code has the bits 0x4b0000 and, below them, code + 128: a lookup and a subtraction, both exact, go to
// either vector pipe of a small core, and conversions only to one.
inline Lanes load_codes(const int8_t* x) {
  static const uint8_t kBytes[16] = {0, 16, 16, 17, 1, 16, 16, 17, 2, 16, 16, 17, 3, 16, 16, 17};
  const uint8x16_t first = vld1q_u8(kBytes);
  const uint8x16x2_t from = {{veorq_u8(vld1q_u8(reinterpret_cast<const uint8_t*>(x)), vdupq_n_u8(0x80)),
                              vreinterpretq_u8_u16(vdupq_n_u16(0x4b00))}};
  const uint8x16_t next = vreinterpretq_u8_u32(vdupq_n_u32(4));
  EDGEKIT_EACH_QUARTER(vsubq_f32(
      vreinterpretq_f32_u8(vqtbl2q_u8(from, vaddq_u8(first, vmulq_u8(next, vdupq_n_u8(uint8_t(i)))))),
      vdupq_n_f32(0x1p23f + 128.0f)));
}
inline void store(float* x, Lanes a) {
  for (int i = 0; i < 4; ++i) {
    vst1q_f32(x + 4 * i, a.v[i]);
  }
}
inline void store_half(uint16_t* x, Lanes a) {
  for (int i = 0; i < 4; ++i) {
    vst1_u16(x + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(a.v[i])));
  }
}
inline float sum(Lanes a) {
  const float32x4_t four = vaddq_f32(vaddq_f32(a.v[0], a.v[2]), vaddq_f32(a.v[1], a.v[3]));
  const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
  return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}
inline float largest(Lanes a) {
  return vmaxvq_f32(vmaxq_f32(vmaxq_f32(a.v[0], a.v[2]), vmaxq_f32(a.v[1], a.v[3])));
}

#undef EDGEKIT_EACH_QUARTER

constexpr int kTile = 4;  // 16 of the 32 registers accumulate

#else
#error "no sixteen-lane type for this ISA"
#endif
