// How the codes of a format become the bytes that a prefill loop multiplies: levels, whole numbers of which
// value = scale * factor * level; level = code, but 2 * code + 1 for q2.
#pragma once

#include "gemm/layout.h"

namespace edgekit::gemm {

struct Unpacking {
  // Blocks of packed codes to blocks of bytes, kUnpackedBlock each, in the order that the ISA's prefill loop wants.
  void (*unpack)(size_t blocks, const uint8_t* codes, uint8_t* bytes);
  size_t block_bytes;
  int32_t bias;  // byte = level + bias; 0 where bytes are signed
  float factor;  // 1, or 1/2 for q2
};

}  // namespace edgekit::gemm
