// The operations between matrix products, for vectors in float: norm, rotary, attention over a cache in half precision
// or int8, SwiGLU, and what sampling needs.
//
// One portable source (ops_body.h) on sixteen lanes (lanes.h), compiled once an ISA. The result of every function is
// the same to the last bit on every ISA.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace edgekit::ops {

constexpr size_t kLanes = 16;
constexpr size_t kStrip = 64;

// Positions of cache whose softmax is computed on its own; blocks are merged in rising order, so how they are divided
// among threads changes nothing.
constexpr size_t kBlock = 128;

// Attention of some query vectors over one block of one head's cache.
//
//   keys    [positions / 16][head_dim][16]  f16 or int8; sixteen positions side by side: scores need no sum over lanes
//   values  [positions][value_stride]       the same; value_stride = head_dim rounded up to 16
//   scales  [positions]                     f32, of int8 keys and of int8 values; null for f16
//
//   partial [queries][partial_stride]       value_stride floats: sum of p * value; then the largest score, the sum of p
struct AttendBlock {
  size_t queries;
  size_t head_dim;
  const float* const* q;      // [queries] pointers to head_dim floats
  const void* keys;           // of the block's first position
  const void* values;         // of the block's first position
  const float* key_scales;    // null: keys and values are f16
  const float* value_scales;
  uintptr_t next_bytes;       // from this block to the one that is likely attended next, which is prefetched
  const uint16_t* begin;      // [queries] first position seen, counted from the block's first
  const uint16_t* end;        // [queries] one past the last; not above begin: the query sees nothing here
  float scale;                // of q . k
  float* partial;
  size_t partial_stride;  // at least value_stride + 2
};

struct Ops {
  const char* isa;

  // out = x / rms(x) * weight, rms(x) = sqrt(mean of squares + eps). `out` may be `x`.
  void (*rms_norm)(size_t k, const float* x, const float* weight, float eps, float* out);

  // y += x.
  void (*add)(size_t n, const float* x, float* y);

  // out [16 * pairs] = gate / (1 + exp(-gate)) * up, where `alternating` holds 16 of gate, 16 of up, 16 of gate ...
  void (*silu_multiply)(size_t pairs, const float* alternating, float* out);

  // Rotates element i with element i + head_dim / 2 by the angle whose cosine and sine are given (head_dim / 2 each).
  void (*rotate)(size_t head_dim, const float* cosine, const float* sine, float* head);

  // Writes a key as column `lane` of a block of sixteen positions, and a value as a row padded with zeros to 16.
  // Magnitudes above 65504 become 65504.
  void (*append_key)(size_t head_dim, const float* key, size_t lane, uint16_t* keys);
  void (*append_value)(size_t head_dim, const float* value, uint16_t* row);

  void (*attend)(const AttendBlock& block);
  // Takes a block's partial result into the one of the blocks before it. Both as in AttendBlock; the first `into` is
  // zeros with a largest score of -infinity.
  void (*merge)(size_t value_stride, const float* partial, float* into);
  // out = weighted sum / sum of weights.
  void (*finish_attention)(size_t head_dim, size_t value_stride, const float* merged, float* out);

  // maxima[i] = the largest of the kStrip elements from kStrip * i on; the last strip may be shorter.
  void (*strip_maxima)(size_t n, const float* x, float* maxima);

  // y = exp((x - shift) * factor), returns the sum; `y` may be null or `x`.
  float (*exponentials)(size_t n, const float* x, float shift, float factor, float* y);
};

// The best set for a CPU with `features` (edgekit/cpu.h).
const Ops& choose_ops(uint64_t features);

// Every set in this binary that a CPU with `features` runs, best first; returns their count, at most 4.
size_t list_ops(uint64_t features, const Ops* sets[4]);

}  // namespace edgekit::ops
