// Attention of some queries over one block of positions (AttendBlock in ops.h), on the lanes and with the exponential
// of ops_body.h, which includes this.

inline Lanes load_cached(const uint16_t* x) { return load_half(x); }
inline Lanes load_cached(const int8_t* x) { return load_codes(x); }

// Asks for `bytes` from an address on to be in the cache soon. Never faults, wherever that is.
template <size_t bytes>
inline void prefetch(uintptr_t address) {
#pragma GCC unroll 8
  for (size_t at = 0; at < bytes; at += 64) {
    __builtin_prefetch(reinterpret_cast<const void*>(address + at));
  }
}

inline uintptr_t address_of(const void* data) { return reinterpret_cast<uintptr_t>(data); }

// scores[r][16 * p + lane] = scale * (q[r] . key of position 16 * p + lane), d rising. R * P chains of fma in flight.
// `key_scales` of these positions are multiplied with the scale. What is at `next`, as long as the keys, is read soon.
template <int R, int P, typename Element>
inline void score(size_t head_dim, const float* const* q, const Element* keys, const float* key_scales, uintptr_t next,
                  float scale, float* scores) {
  constexpr size_t kStripBytes = kLanes * sizeof(Element);
  Lanes acc[R][P];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) {
      acc[r][p] = broadcast(0.0f);
    }
  }
  for (size_t d = 0; d < head_dim; ++d) {
    prefetch<P * kStripBytes>(next + d * P * kStripBytes);
    Lanes key[P];
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) {
      key[p] = load_cached(keys + (p * head_dim + d) * kLanes);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Lanes element = broadcast(q[r][d]);
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) {
        acc[r][p] = fma(element, key[p], acc[r][p]);
      }
    }
  }
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) {
    Lanes factor = broadcast(scale);
    if constexpr (sizeof(Element) == 1) {
      factor = multiply(factor, load(key_scales + p * kLanes));
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      store(scores + r * kBlock + p * kLanes, multiply(acc[r][p], factor));
    }
  }
}

// out[r][16 * d + lane] = sum over positions j of weights[r][j] * value[j][16 * d + lane], j rising.
// What is at `next`, of the same shape as the values, is read soon.
template <int R, int D, typename Element>
inline void weigh(size_t begin, size_t end, size_t stride, const float* weights, const Element* values, uintptr_t next,
                  float* out, size_t out_stride) {
  Lanes acc[R][D];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int d = 0; d < D; ++d) {
      acc[r][d] = broadcast(0.0f);
    }
  }
  for (size_t j = begin; j < end; ++j) {
    prefetch<D * kLanes * sizeof(Element)>(next + j * stride * sizeof(Element));
    Lanes value[D];
#pragma GCC unroll 8
    for (int d = 0; d < D; ++d) {
      value[d] = load_cached(values + j * stride + d * kLanes);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Lanes weight = broadcast(weights[r * kBlock + j]);
#pragma GCC unroll 8
      for (int d = 0; d < D; ++d) {
        acc[r][d] = fma(weight, value[d], acc[r][d]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int d = 0; d < D; ++d) {
      store(out + r * out_stride + d * kLanes, acc[r][d]);
    }
  }
}

// Turns the scores of positions [begin, end) into weights e^(score - largest), all others in the strips into 0. The
// total is that of the weights before they are multiplied by the values' scales, which may be null.
inline void softmax_block(size_t begin, size_t end, size_t first_strip, size_t last_strip, const float* value_scales,
                          float* scores, float* largest_score, float* total) {
  for (size_t j = first_strip * kLanes; j < begin && j < last_strip * kLanes; ++j) {
    scores[j] = kMinusInfinity;
  }
  for (size_t j = end > first_strip * kLanes ? end : first_strip * kLanes; j < last_strip * kLanes; ++j) {
    scores[j] = kMinusInfinity;
  }
  Lanes most = broadcast(kMinusInfinity);
  for (size_t s = first_strip; s < last_strip; ++s) {
    most = maximum(most, load(scores + s * kLanes));
  }
  *largest_score = largest(most);
  const Lanes shift = broadcast(*largest_score);
  Lanes totals = broadcast(0.0f);
  for (size_t s = first_strip; s < last_strip; ++s) {
    const Lanes weight = exponential(subtract(load(scores + s * kLanes), shift));
    totals = add(totals, weight);
    store(scores + s * kLanes,
          value_scales == nullptr ? weight : multiply(weight, load(value_scales + s * kLanes)));
  }
  *total = sum(totals);
}

// score() for the strips from `strip` on, kAcross at a time as long as there are so many, then half as many at a time.
template <int R, int kAcross, typename Element>
inline void score_strips(const AttendBlock& block, size_t first, size_t strip, size_t last_strip, size_t stride,
                         float* scores) {
  const Element* keys = static_cast<const Element*>(block.keys);
  for (; strip + kAcross <= last_strip; strip += kAcross) {
    score<R, kAcross>(block.head_dim, block.q + first, keys + strip * block.head_dim * kLanes,
                      sizeof(Element) == 1 ? block.key_scales + strip * kLanes : nullptr,
                      address_of(block.values) + strip * stride * kLanes * sizeof(Element), block.scale,
                      scores + strip * kLanes);
  }
  if constexpr (kAcross > 1) {
    score_strips<R, kAcross / 2, Element>(block, first, strip, last_strip, stride, scores);
  }
}

// weigh() for the elements from d on, in the same way. The keys of the next block are read soon.
template <int R, int kAcross, typename Element>
inline void weigh_elements(const AttendBlock& block, size_t begin, size_t end, size_t d, size_t stride,
                           const float* weights, float* partial) {
  const Element* values = static_cast<const Element*>(block.values);
  const uintptr_t next_keys = address_of(block.keys) + block.next_bytes;
  for (; d + kAcross * kLanes <= stride; d += kAcross * kLanes) {
    weigh<R, kAcross>(begin, end, stride, weights, values + d, next_keys + d * sizeof(Element), partial + d,
                      block.partial_stride);
  }
  if constexpr (kAcross > 1) {
    weigh_elements<R, kAcross / 2, Element>(block, begin, end, d, stride, weights, partial);
  }
}

// The largest power of two for which R queries times it fit the tile.
constexpr int strips_across(int queries) {
  int across = 1;
  while (2 * across * queries <= kTile) {
    across *= 2;
  }
  return across;
}

template <int R, typename Element>
void attend_queries(const AttendBlock& block, size_t first) {
  alignas(64) float scores[R * kBlock];
  const size_t stride = (block.head_dim + kLanes - 1) / kLanes * kLanes;
  size_t begin = kBlock;
  size_t end = 0;
  for (size_t r = 0; r < R; ++r) {
    if (block.begin[first + r] < block.end[first + r]) {
      begin = block.begin[first + r] < begin ? block.begin[first + r] : begin;
      end = block.end[first + r] > end ? block.end[first + r] : end;
    }
  }
  const size_t first_strip = begin / kLanes;
  const size_t last_strip = end > begin ? (end + kLanes - 1) / kLanes : first_strip;
  score_strips<R, strips_across(R), Element>(block, first, first_strip, last_strip, stride, scores);
  float* partial = block.partial + first * block.partial_stride;
  for (size_t r = 0; r < R; ++r) {
    float* tail = partial + r * block.partial_stride + stride;
    softmax_block(block.begin[first + r], block.end[first + r], first_strip, last_strip, block.value_scales,
                  scores + r * kBlock, &tail[0], &tail[1]);
  }
  weigh_elements<R, strips_across(R), Element>(block, begin, end, 0, stride, scores, partial);
}

template <typename Element>
void attend_cached(const AttendBlock& block) {
  size_t first = 0;
  if constexpr (kTile >= 8) {
    for (; first + 8 <= block.queries; first += 8) {
      attend_queries<8, Element>(block, first);
    }
  }
  for (; first + 4 <= block.queries; first += 4) {
    attend_queries<4, Element>(block, first);
  }
  switch (block.queries - first) {
    case 3:
      attend_queries<3, Element>(block, first);
      break;
    case 2:
      attend_queries<2, Element>(block, first);
      break;
    case 1:
      attend_queries<1, Element>(block, first);
      break;
    default:
      break;
  }
}

void attend(const AttendBlock& block) {
  if (block.key_scales == nullptr) {
    return attend_cached<uint16_t>(block);
  }
  prefetch<kBlock * sizeof(float)>(address_of(block.key_scales) + block.next_bytes);
  prefetch<kBlock * sizeof(float)>(address_of(block.value_scales) + block.next_bytes);
  attend_cached<int8_t>(block);
}
