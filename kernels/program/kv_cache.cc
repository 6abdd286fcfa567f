#include "program/kv_cache.h"

#include <algorithm>

#include "edgekit/gemm.h"

namespace edgekit {
namespace {

constexpr size_t kCodesUnit = 32;  // of edgekit_quantize_row

// All of a key or value is one group. Returns its scale.
float quantize(size_t head_dim, const float* x, int8_t* codes) {
  float scale;
  int32_t sum;
  edgekit_quantize_row(head_dim, round_up(head_dim, kCodesUnit), round_up(head_dim, kCodesUnit), x, codes, &scale,
                       &sum);
  return scale;
}

}  // namespace

bool KvCache::allocate(const edgekit_program_info& info, uint32_t context, edgekit_kv_format format) {
  const bool is_q8 = format == EDGEKIT_KV_Q8;
  format_ = format;
  kv_heads_ = info.kv_heads;
  head_dim_ = info.head_dim;
  value_stride_ = round_up(info.head_dim, ops::kLanes);
  capacity_ = round_up(context, ops::kLanes);
  element_bytes_ = is_q8 ? sizeof(int8_t) : sizeof(uint16_t);
  position_bytes_ = (head_dim_ + value_stride_) * element_bytes_ + (is_q8 ? 2 * sizeof(float) : 0);
  // Cannot overflow: 2^10 layers * 2^10 heads * 2^20 positions * 2 * 2^10 * 2 bytes = 2^52.
  return memory_.allocate(uint64_t(info.layers) * kv_heads_ * capacity_ * position_bytes_);
}

KvBlock KvCache::block(size_t layer, size_t head, size_t index) const {
  const size_t start = index * ops::kBlock;
  const size_t positions = std::min(ops::kBlock, capacity_ - start);
  KvBlock found{};
  found.bytes = ops::kBlock * position_bytes_;
  found.keys = memory_.at<uint8_t>(((layer * kv_heads_ + head) * capacity_ + start) * position_bytes_);
  found.values = found.keys + positions * head_dim_ * element_bytes_;
  if (format_ == EDGEKIT_KV_Q8) {
    found.key_scales = reinterpret_cast<float*>(found.values + positions * value_stride_);
    found.value_scales = found.key_scales + positions;
  }
  return found;
}

void KvCache::append(const ops::Ops& ops, size_t layer, size_t head, size_t position, const float* key,
                     const float* value, int8_t* codes) const {
  const KvBlock to = block(layer, head, position / ops::kBlock);
  const size_t at = position % ops::kBlock;
  const size_t lane = at % ops::kLanes;
  const size_t first_of_strip = (at - lane) * head_dim_;
  const size_t row = at * value_stride_;
  if (format_ == EDGEKIT_KV_F16) {
    ops.append_key(head_dim_, key, lane, reinterpret_cast<uint16_t*>(to.keys) + first_of_strip);
    ops.append_value(head_dim_, value, reinterpret_cast<uint16_t*>(to.values) + row);
    return;
  }
  to.key_scales[at] = quantize(head_dim_, key, codes);
  int8_t* column = reinterpret_cast<int8_t*>(to.keys) + first_of_strip + lane;
  for (size_t d = 0; d < head_dim_; ++d) {
    column[d * ops::kLanes] = codes[d];
  }
  to.value_scales[at] = quantize(head_dim_, value, codes);
  std::copy_n(codes, value_stride_, reinterpret_cast<int8_t*>(to.values) + row);
}

}  // namespace edgekit
