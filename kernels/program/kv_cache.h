// Keys and values of the positions that a session holds, f16 or int8.
//
//   [layer][kv head][block of 128 positions], the last block shorter; of n positions a block holds
//     keys          [n / 16][head_dim][16]
//     values        [n][value_stride]
//     key scales    [n]  f32, int8 only
//     value scales  [n]  the same
//
// A block lies in one piece, so reading a head is one rising stream.
#pragma once

#include "edgekit/program.h"
#include "ops/ops.h"
#include "program/memory.h"

namespace edgekit {

struct KvBlock {
  uint8_t* keys;
  uint8_t* values;
  float* key_scales;  // null for f16
  float* value_scales;
  size_t bytes;  // of a whole block: where the next one is
};

class KvCache {
 public:
  // False if there is no memory for so many positions.
  bool allocate(const edgekit_program_info& info, uint32_t context, edgekit_kv_format format);

  edgekit_kv_format format() const { return format_; }
  uint64_t bytes() const { return memory_.bytes(); }
  // Of one position in one layer, all heads.
  uint64_t position_bytes() const { return kv_heads_ * position_bytes_; }
  size_t value_stride() const { return value_stride_; }

  KvBlock block(size_t layer, size_t head, size_t index) const;

  // Writes one position's key and value. `codes` has room for head_dim rounded up to 32.
  void append(const ops::Ops& ops, size_t layer, size_t head, size_t position, const float* key, const float* value,
              int8_t* codes) const;

 private:
  Memory memory_;
  edgekit_kv_format format_ = EDGEKIT_KV_F16;
  size_t kv_heads_ = 0;
  size_t head_dim_ = 0;
  size_t value_stride_ = 0;
  size_t capacity_ = 0;        // positions, a multiple of 16
  size_t element_bytes_ = 0;
  size_t position_bytes_ = 0;  // of one head
};

}  // namespace edgekit
