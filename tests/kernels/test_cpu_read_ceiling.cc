// Reading memory as fast as it goes: every pattern reads every word once.
#include <cstdint>
#include <vector>

#include "check.h"
#include "cpu/read_ceiling.h"
#include "cpu/read_memory.h"
#include "edgekit/cpu.h"
#include "guarded.h"

namespace edgekit::testing {
namespace {

std::vector<decltype(&cpu::scalar::read_memory)> readers() {
  std::vector<decltype(&cpu::scalar::read_memory)> found = {cpu::scalar::read_memory};
#if defined(__x86_64__)
  if ((edgekit_cpu_features() & EDGEKIT_CPU_AVX2) != 0) found.push_back(cpu::avx2::read_memory);
  if ((edgekit_cpu_features() & EDGEKIT_CPU_AVX512_VNNI) != 0) found.push_back(cpu::avx512_vnni::read_memory);
#endif
  return found;
}

TEST(every_pattern_reads_every_word_once) {
  for (const size_t units : {1, 2, 5}) {
    Guarded<uint64_t> words(units * cpu::kReadUnit / sizeof(uint64_t));
    uint64_t expected = 0;
    for (size_t i = 0; i < words.size(); i++) {
      words[i] = (i + 1) * 0x9e3779b97f4a7c15u;
      expected += words[i];
    }
    for (const auto& read : readers()) {
      for (size_t pattern = 0; pattern < cpu::kReadPatterns; pattern++) {
        CHECK(read(static_cast<cpu::ReadPattern>(pattern), words.data(), units * cpu::kReadUnit) == expected);
      }
    }
  }
}

TEST(one_thread_and_several_have_a_ceiling) {
  for (const size_t threads : {1, 2, 5}) CHECK(measure_read_ceiling(threads, 1 << 20, 2) > 0);
}

TEST(without_threads_memory_or_rounds_there_is_none) {
  CHECK(measure_read_ceiling(0, 1 << 20, 1) == 0);
  CHECK(measure_read_ceiling(1, 0, 1) == 0);
  CHECK(measure_read_ceiling(1, cpu::kReadUnit - 1, 1) == 0);
  CHECK(measure_read_ceiling(1, 1 << 20, 0) == 0);
  CHECK(measure_read_ceiling(1, SIZE_MAX / 2, 1) == 0);
}

}  // namespace
}  // namespace edgekit::testing

EDGEKIT_TEST_MAIN
