#include "bandwidth.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <thread>
#include <vector>

namespace edgekit::python {
namespace {

constexpr size_t kPage = 4096;  // shares begin on pages

// Narrow loads do not saturate the memory of a large x86 core, so the loop is compiled for each width of registers.
#if defined(__x86_64__) && defined(__GLIBC__)
#define EDGEKIT_EVERY_WIDTH __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define EDGEKIT_EVERY_WIDTH
#endif

typedef uint64_t Lanes __attribute__((vector_size(64)));
constexpr size_t kSums = 8;  // independent, so that additions do not wait for one another

EDGEKIT_EVERY_WIDTH uint64_t sum_of(const Lanes* data, size_t count) {
  Lanes sums[kSums] = {};
  for (size_t i = 0; i + kSums <= count; i += kSums) {
    for (size_t s = 0; s < kSums; ++s) sums[s] += data[i + s];
  }
  uint64_t total = 0;
  for (const Lanes& sum : sums) {
    for (size_t lane = 0; lane < sizeof(Lanes) / sizeof(uint64_t); ++lane) total += sum[lane];
  }
  return total;
}

}  // namespace

double read_bandwidth(size_t threads, size_t bytes, size_t rounds) {
  const size_t share = bytes / threads / kPage * kPage;
  const size_t total = share * threads;
  auto* memory = static_cast<uint8_t*>(std::aligned_alloc(kPage, std::max(total, kPage)));
  if (memory == nullptr || total == 0) {
    std::free(memory);
    return 0;
  }
  std::atomic<uint64_t> sink{0};
  const auto pass = [&](auto&& work) {
    std::vector<std::thread> pool;
    for (size_t t = 1; t < threads; ++t) pool.emplace_back(work, memory + t * share);
    work(memory);
    for (std::thread& thread : pool) thread.join();
  };
  // Written by the thread that reads it, so that the pages are real and near it.
  pass([&](uint8_t* block) {
    for (size_t i = 0; i < share; ++i) block[i] = static_cast<uint8_t>(i);
  });
  double best = 0;
  for (size_t round = 0; round < rounds; ++round) {
    const auto start = std::chrono::steady_clock::now();
    pass([&](uint8_t* block) {
      sink += sum_of(reinterpret_cast<const Lanes*>(block), share / sizeof(Lanes));
    });
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
    best = std::max(best, static_cast<double>(total) / taken.count());
  }
  std::free(memory);
  return sink.load() == 1 ? best + 1 : best;  // the sum is used, so the reading cannot be removed
}

}  // namespace edgekit::python
