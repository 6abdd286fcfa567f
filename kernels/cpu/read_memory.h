// Ways to read memory fast, each compiled for every width of registers: narrow loads do not saturate a large core.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace edgekit::cpu {

// Which one is the fastest depends on the core's prefetchers.
enum class ReadPattern { kStream, kStreamAskedAhead, kFourStreams, kFourStreamsAskedAhead };

constexpr size_t kReadPatterns = 4;
constexpr size_t kReadUnit = 4096;  // bytes

// The sum of the 64-bit words of `bytes` bytes, a multiple of kReadUnit, at an address that is a multiple of 64.
#define EDGEKIT_READ_MEMORY(isa) \
  namespace isa {                \
  uint64_t read_memory(ReadPattern pattern, const void* data, size_t bytes); \
  }
EDGEKIT_READ_MEMORY(scalar)
EDGEKIT_READ_MEMORY(avx2)
EDGEKIT_READ_MEMORY(avx512_vnni)
#undef EDGEKIT_READ_MEMORY

}  // namespace edgekit::cpu
