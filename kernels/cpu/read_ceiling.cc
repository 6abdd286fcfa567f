#include "cpu/read_ceiling.h"

#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <barrier>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "cpu/read_memory.h"
#include "edgekit/cpu.h"

namespace edgekit {
namespace {

using Clock = std::chrono::steady_clock;
using cpu::ReadPattern;

decltype(&cpu::scalar::read_memory) choose_read_memory() {
#if defined(__x86_64__)
  const uint64_t features = edgekit_cpu_features();
  if ((features & EDGEKIT_CPU_AVX512_VNNI) != 0) return cpu::avx512_vnni::read_memory;
  if ((features & EDGEKIT_CPU_AVX2) != 0) return cpu::avx2::read_memory;
#endif
  return cpu::scalar::read_memory;
}

// Pages as the weights have: mapped small, and real only when written.
class Block {
 public:
  explicit Block(size_t bytes)
      : bytes_(bytes), data_(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)) {}
  ~Block() {
    if (is_there()) munmap(data_, bytes_);
  }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  bool is_there() const { return data_ != MAP_FAILED; }
  uint8_t* at(size_t offset) const { return static_cast<uint8_t*>(data_) + offset; }

 private:
  size_t bytes_;
  void* data_;
};

// The passes of all threads: a barrier before and after each, so that starting threads is not timed.
struct Passes {
  enum class Gate { kClosed, kOpen, kCancelled };

  Passes(const Block& its_block, size_t threads, size_t its_share, size_t its_rounds)
      : block(its_block), share(its_share), rounds(its_rounds), spans(threads), barrier(ptrdiff_t(threads)) {}

  // Runs as thread number `thread`. A pass takes from the first start to the last end, whoever wakes late.
  void run(size_t thread) {
    const auto read_memory = choose_read_memory();
    uint8_t* data = block.at(thread * share);
    memset(data, 1, share);  // by the thread that reads it, so that the pages are near
    for (size_t pass = 0; pass < rounds * cpu::kReadPatterns; pass++) {
      const size_t pattern = pass % cpu::kReadPatterns;
      barrier.arrive_and_wait();
      spans[thread].start = Clock::now();
      sum += read_memory(static_cast<ReadPattern>(pattern), data, share);
      spans[thread].end = Clock::now();
      barrier.arrive_and_wait();
      if (thread == 0) seconds[pattern].push_back(seconds_of_pass());
    }
  }

  // The median pass of the fastest pattern.
  double typical_seconds() {
    double fastest = std::numeric_limits<double>::infinity();
    for (std::vector<double>& passes : seconds) {
      const auto middle = passes.begin() + ptrdiff_t(passes.size() / 2);
      std::nth_element(passes.begin(), middle, passes.end());
      fastest = std::min(fastest, *middle);
    }
    return fastest;
  }

  double seconds_of_pass() const {
    Span whole = spans[0];
    for (const Span& span : spans) {
      whole.start = std::min(whole.start, span.start);
      whole.end = std::max(whole.end, span.end);
    }
    return std::chrono::duration<double>(whole.end - whole.start).count();
  }

  struct alignas(64) Span {
    Clock::time_point start;
    Clock::time_point end;
  };

  const Block& block;
  const size_t share;
  const size_t rounds;
  std::vector<Span> spans;  // of the pass at hand, one a thread
  std::barrier<> barrier;
  std::atomic<Gate> gate{Gate::kClosed};
  std::atomic<uint64_t> sum{0};  // so that the reading cannot be left out
  std::array<std::vector<double>, cpu::kReadPatterns> seconds;  // of every pass
};

struct Member {
  Passes* passes;
  size_t number;
  pthread_t thread;
};

void* live(void* argument) {
  const Member& member = *static_cast<const Member*>(argument);
  member.passes->gate.wait(Passes::Gate::kClosed);
  if (member.passes->gate.load() == Passes::Gate::kOpen) member.passes->run(member.number);
  return nullptr;
}

}  // namespace

double measure_read_ceiling(size_t threads, size_t bytes, size_t rounds) {
  const size_t share = threads == 0 ? 0 : bytes / threads / cpu::kReadUnit * cpu::kReadUnit;
  if (share == 0 || rounds == 0) return 0;
  const Block block(share * threads);
  if (!block.is_there()) return 0;
  Passes passes(block, threads, share, rounds);
  std::vector<Member> others(threads - 1);
  size_t started = 0;
  for (Member& member : others) {
    member = {&passes, started + 1, {}};
    if (pthread_create(&member.thread, nullptr, live, &member) != 0) break;
    started++;
  }
  const bool are_all = started == others.size();
  passes.gate.store(are_all ? Passes::Gate::kOpen : Passes::Gate::kCancelled);
  passes.gate.notify_all();
  if (are_all) passes.run(0);
  for (size_t i = 0; i < started; i++) pthread_join(others[i].thread, nullptr);
  return are_all ? static_cast<double>(share * threads) / passes.typical_seconds() : 0;
}

}  // namespace edgekit
