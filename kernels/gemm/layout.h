// The packed layout of edgekit/gemm.h in numbers, for the kernels of every ISA. Plain inline code, no library.
#pragma once

#include "edgekit/gemm.h"

namespace edgekit::gemm {
namespace {

constexpr size_t kTile = EDGEKIT_TILE;
constexpr size_t kBlock = EDGEKIT_K_UNIT;  // k is counted in blocks of 32 = 8 quads
constexpr size_t kRow = EDGEKIT_ROW_BYTES;
constexpr size_t kQuads = kBlock / 4;

// Bytes that one block of one tile takes when every code is a byte of its own: 8 rows, one a quad.
constexpr size_t kUnpackedBlock = kQuads * kRow;

// Bytes of one block of one tile: 512 codes of `bits`.
constexpr size_t block_bytes(size_t bits) { return kTile * kBlock * bits / 8; }

inline size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

inline size_t group_count(size_t k, size_t group) { return (k + group - 1) / group; }

inline float from_bf16(uint16_t bits) { return __builtin_bit_cast(float, static_cast<uint32_t>(bits) << 16); }

}  // namespace
}  // namespace edgekit::gemm
