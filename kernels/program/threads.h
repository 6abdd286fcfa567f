// A team of threads that execute the same program side by side and meet at barriers.
//
// Waiting is active for a few microseconds and then sleeps (futex): on a machine with other work to do a team is
// slower, not stuck. Work between two barriers is divided dynamically by claim().
#pragma once

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

#include <atomic>

namespace edgekit {

class Team {
 public:
  using Body = void (*)(void* context, unsigned member);

  Team() = default;
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  // Starts count - 1 threads; the caller of run() is the first member. False if the system gives no thread.
  bool start(unsigned count, uint32_t spin_microseconds);

  unsigned count() const { return count_; }

  // Runs body(context, member) on the first `active` members and returns when the caller's own call has. `body` ends
  // with a barrier, so that nothing of it is running any more.
  void run(unsigned active, Body body, void* context);

  // Called by each active member: returns when all have. Starts claim() anew.
  void barrier();

  // The next piece of work: 0, 1, 2 ... across all members since the last barrier.
  size_t claim() { return next_.fetch_add(1, std::memory_order_relaxed); }

 private:
  struct alignas(64) Member {
    std::atomic<uint32_t> ticket{0};  // counts the jobs given to it
    std::atomic<uint32_t> asleep{0};
    pthread_t thread{};
    Team* team = nullptr;
    unsigned index = 0;
  };

  static void* live(void* member);
  void await_change(std::atomic<uint32_t>& word, uint32_t seen, std::atomic<uint32_t>& asleep) const;

  alignas(64) std::atomic<size_t> next_{0};
  alignas(64) std::atomic<uint32_t> arrived_{0};
  alignas(64) std::atomic<uint32_t> generation_{0};
  std::atomic<uint32_t> asleep_{0};
  alignas(64) unsigned active_ = 1;
  unsigned count_ = 1;
  uint64_t spin_nanoseconds_ = 0;
  Body body_ = nullptr;
  void* context_ = nullptr;
  std::atomic<bool> ending_{false};
  Member* members_ = nullptr;
};

}  // namespace edgekit
