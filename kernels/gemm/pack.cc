#include <string.h>

#include "edgekit/gemm.h"
#include "gemm/blocks.h"
#include "gemm/float16.h"
#include "gemm/layout.h"

namespace edgekit::gemm {
namespace {

size_t block_count(size_t k) { return (k + kBlock - 1) / kBlock; }

// Codes of rows [row, row + 16) and k [p, p + 32), zero where the matrix ends, as [quad][column][4].
void gather_block(size_t n, size_t k, const int8_t* codes, size_t row, size_t p, int8_t* block) {
  memset(block, 0, kUnpackedBlock);
  const size_t columns = smaller(kTile, n - row);
  const size_t depth = smaller(kBlock, k - p);
  for (size_t column = 0; column < columns; column++) {
    const int8_t* from = codes + (row + column) * k + p;
    for (size_t i = 0; i < depth; i++) block[i / 4 * kRow + column * 4 + i % 4] = from[i];
  }
}

template <class Format>
void pack_integers(size_t n, size_t k, const int8_t* codes, uint8_t* packed) {
  int8_t block[kUnpackedBlock];
  for (size_t row = 0; row < n; row += kTile) {
    for (size_t p = 0; p < k; p += kBlock) {
      gather_block(n, k, codes, row, p, block);
      Format::pack(block, packed);
      packed += block_bytes(Format::kBits);
    }
  }
}

template <class Value>
void pack_floats(size_t n, size_t k, const Value* values, uint8_t* packed) {
  for (size_t row = 0; row < n; row += kTile) {
    const size_t columns = smaller(kTile, n - row);
    for (size_t p = 0; p < k; p++) {
      Value line[kTile] = {};
      for (size_t column = 0; column < columns; column++) line[column] = values[(row + column) * k + p];
      memcpy(packed, line, sizeof line);
      packed += sizeof line;
    }
  }
}

template <class Format>
void unpack_integers(size_t k, size_t group, const uint8_t* tile, const uint16_t* scales, size_t column,
                     float* values) {
  int8_t block[kUnpackedBlock];
  for (size_t p = 0; p < k; p++) {
    if (p % kBlock == 0) Format::unpack(tile + p / kBlock * block_bytes(Format::kBits), block);
    const size_t i = p % kBlock;
    const float code = block[i / 4 * kRow + column * 4 + i % 4];
    values[p] = from_bf16(scales[p / group * kTile + column]) * (code + (Format::kDoubled ? 0.5f : 0.0f));
  }
}

}  // namespace
}  // namespace edgekit::gemm

using namespace edgekit::gemm;

size_t edgekit_tile_code_bytes(edgekit_format weights, size_t k) {
  switch (weights) {
    case EDGEKIT_F32: return k * kTile * 4;
    case EDGEKIT_F16: return k * kTile * 2;
    case EDGEKIT_Q8: return block_count(k) * block_bytes(8);
    case EDGEKIT_Q4: return block_count(k) * block_bytes(4);
    case EDGEKIT_Q3: return block_count(k) * block_bytes(3);
    case EDGEKIT_Q2:
    case EDGEKIT_T2: return block_count(k) * block_bytes(2);
  }
  return 0;
}

size_t edgekit_tile_scale_bytes(edgekit_format weights, size_t k, size_t group) {
  if (weights == EDGEKIT_F32 || weights == EDGEKIT_F16) return 0;
  return group_count(k, group) * kTile * sizeof(uint16_t);
}

void edgekit_pack_codes(edgekit_format weights, size_t n, size_t k, const void* codes, uint8_t* packed) {
  const int8_t* integers = static_cast<const int8_t*>(codes);
  switch (weights) {
    case EDGEKIT_F32: return pack_floats(n, k, static_cast<const float*>(codes), packed);
    case EDGEKIT_F16: return pack_floats(n, k, static_cast<const uint16_t*>(codes), packed);
    case EDGEKIT_Q8: return pack_integers<Q8>(n, k, integers, packed);
    case EDGEKIT_Q4: return pack_integers<Q4>(n, k, integers, packed);
    case EDGEKIT_Q3: return pack_integers<Q3>(n, k, integers, packed);
    case EDGEKIT_Q2:
    case EDGEKIT_T2: return pack_integers<T2>(n, k, integers, packed);
  }
}

void edgekit_pack_scales(size_t n, size_t groups, const uint16_t* scales, uint16_t* packed) {
  for (size_t row = 0; row < n; row += kTile) {
    for (size_t g = 0; g < groups; g++) {
      for (size_t column = 0; column < kTile; column++) {
        *packed++ = row + column < n ? scales[(row + column) * groups + g] : uint16_t{0};
      }
    }
  }
}

void edgekit_unpack_row(edgekit_format weights, size_t k, size_t group, const uint8_t* packed_codes,
                        const uint16_t* packed_scales, size_t row, float* values) {
  const size_t column = row % kTile;
  const uint8_t* tile = packed_codes + row / kTile * edgekit_tile_code_bytes(weights, k);
  const uint16_t* scales =
      packed_scales + row / kTile * edgekit_tile_scale_bytes(weights, k, group) / sizeof(uint16_t);
  switch (weights) {
    case EDGEKIT_F32: {
      const float* floats = reinterpret_cast<const float*>(tile);
      for (size_t p = 0; p < k; p++) values[p] = floats[p * kTile + column];
      return;
    }
    case EDGEKIT_F16: {
      const uint16_t* halves = reinterpret_cast<const uint16_t*>(tile);
      for (size_t p = 0; p < k; p++) values[p] = from_f16(halves[p * kTile + column]);
      return;
    }
    case EDGEKIT_Q8: return unpack_integers<Q8>(k, group, tile, scales, column, values);
    case EDGEKIT_Q4: return unpack_integers<Q4>(k, group, tile, scales, column, values);
    case EDGEKIT_Q3: return unpack_integers<Q3>(k, group, tile, scales, column, values);
    case EDGEKIT_Q2: return unpack_integers<Q2>(k, group, tile, scales, column, values);
    case EDGEKIT_T2: return unpack_integers<T2>(k, group, tile, scales, column, values);
  }
}
