#include "cpu/read_memory.h"

namespace edgekit::cpu::EDGEKIT_ISA_WORD {
namespace {

typedef uint64_t Line __attribute__((vector_size(64)));

constexpr size_t kLines = 2;  // read at once: two sums, so that additions do not wait, fit in sixteen 128-bit registers
constexpr size_t kAhead = 1024 / sizeof(Line);

template <size_t kStreams, bool kAsksAhead>
uint64_t sum_of(const Line* lines, size_t count) {
  Line sums[kLines] = {};
  const size_t each = count / kStreams;
  for (size_t i = 0; i < each; i += kLines) {
    for (size_t stream = 0; stream < kStreams; stream++) {
      const Line* at = lines + stream * each + i;
      for (size_t j = 0; j < kLines; j++) {
        if (kAsksAhead) __builtin_prefetch(at + j + kAhead);
        sums[j] += at[j];
      }
    }
  }
  uint64_t total = 0;
  for (const Line& sum : sums) {
    for (size_t lane = 0; lane < sizeof(Line) / sizeof(uint64_t); lane++) total += sum[lane];
  }
  return total;
}

}  // namespace

uint64_t read_memory(ReadPattern pattern, const void* data, size_t bytes) {
  const Line* lines = static_cast<const Line*>(data);
  const size_t count = bytes / sizeof(Line);
  switch (pattern) {
    case ReadPattern::kStream: return sum_of<1, false>(lines, count);
    case ReadPattern::kStreamAskedAhead: return sum_of<1, true>(lines, count);
    case ReadPattern::kFourStreams: return sum_of<4, false>(lines, count);
    case ReadPattern::kFourStreamsAskedAhead: return sum_of<4, true>(lines, count);
  }
  return 0;
}

}  // namespace edgekit::cpu::EDGEKIT_ISA_WORD
