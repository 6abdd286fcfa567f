// A team of threads that walk through the same phases of work side by side.
//
// A phase is a number of items. Threads claim ranges of them one after the other, and the next phase begins when every
// item is finished, whoever did it: a thread that the system has put aside holds nothing up unless it was put aside in
// the middle of a range, and finds the phases it missed done. Waiting is active for a few microseconds and then sleeps
// (futex). So a busy machine makes a team slower and never stuck. For the same reason members need no threads of their
// own: they may be calls that an executor makes on threads of the host, even one after another.
#pragma once

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

#include <atomic>

#include "edgekit/program.h"
#include "program/division.h"

namespace edgekit {

class Team {
 public:
  // What each member does in a run. `run` tells runs apart; claim() and the rest want it back.
  using Body = void (*)(void* context, unsigned member, uint32_t run);

  Team() = default;
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  // Starts count - 1 threads that share `phases` phases a run and execute `body`; the caller of run() is the first
  // member. With an executor it starts none. False if the system gives no thread or no memory. `runs_before`: as if
  // there had been so many; for tests.
  bool start(unsigned count, size_t phases, uint32_t spin_microseconds, Body body, void* context,
             edgekit_executor executor = {}, uint32_t runs_before = 0);

  unsigned count() const { return count_; }

  // The number that the next call of run() will have.
  uint32_t next_run() const { return run_ + 1; }

  // Calls the body on the first `active` members, on this thread too, and returns when the caller's own call has (with
  // an executor: when all have). Others may still be on their way through phases that are done, even while the next run goes on: the body must not
  // touch what a run works on before it has claimed a part of it.
  void run(unsigned active);

  // Items of the phase nobody has yet, for one of the `active` members of the run: as many as the division says for its
  // pace, of its own home while there are any. Empty if there are none. All members give the same division and `active`.
  Range claim(uint32_t run, size_t phase, const Division& division, unsigned member, unsigned active, Pace pace);

  // Says that `done` claimed items are finished: all of a member's at once, so that members disturb each other little.
  void finish(uint32_t run, size_t phase, size_t done, size_t items);

  // Returns when all items of the phase are finished. What was written for them can then be read.
  void await(uint32_t run, size_t phase, size_t items);

 private:
  // Items of a phase. The upper half is the run they belong to, so that no count ever needs to be set back.
  struct alignas(64) Count {
    std::atomic<uint64_t> items{0};
  };

  struct alignas(64) Member {
    std::atomic<uint32_t> called_to{0};  // the latest run it is to take part in
    std::atomic<uint32_t> asleep{0};
    pthread_t thread{};
    Team* team = nullptr;
    unsigned index = 0;
  };

  static void* live(void* member);
  bool start_threads();
  void bring_phases_along();
  bool is_done(uint32_t run, size_t phase, size_t items) const;

  template <typename Condition>
  bool spin_until(const Condition& condition) const;

  Count* claimed_ = nullptr;   // [phases][members], of each home
  Count* finished_ = nullptr;  // [phases]
  size_t phase_count_ = 0;
  size_t home_count_ = 0;  // of each phase: as many as members were asked for
  Member* members_ = nullptr;
  Body body_ = nullptr;
  void* context_ = nullptr;
  edgekit_executor executor_ = {};
  unsigned count_ = 1;
  uint64_t spin_nanoseconds_ = 0;
  std::atomic<bool> ending_{false};
  uint32_t run_ = 0;
  alignas(64) std::atomic<uint32_t> asleep_{0};     // members that sleep in await()
  alignas(64) std::atomic<uint32_t> wake_ups_{0};  // the word they sleep on
};

}  // namespace edgekit
