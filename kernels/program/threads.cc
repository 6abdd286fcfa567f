#include "program/threads.h"

#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <new>

namespace edgekit {
namespace {

constexpr int kPausesBetweenClockReads = 32;
constexpr size_t kStackBytes = size_t(1) << 20;

static_assert(sizeof(std::atomic<uint32_t>) == sizeof(uint32_t), "a futex is a plain 32-bit word");

void pause_briefly() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield" ::: "memory");
#endif
}

uint64_t now_nanoseconds() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return uint64_t(time.tv_sec) * 1000000000u + uint64_t(time.tv_nsec);
}

void sleep_while(std::atomic<uint32_t>& word, uint32_t value) {
  syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
}

void wake_all(std::atomic<uint32_t>& word) {
  syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

uint32_t run_of(uint64_t count) { return uint32_t(count >> 32); }

uint64_t counted(uint32_t run, uint32_t count) { return uint64_t(run) << 32 | count; }

// Runs are numbered around the clock, so only those less than half a turn apart can be compared.
bool is_later(uint32_t run, uint32_t than) { return int32_t(run - than) > 0; }

constexpr uint32_t kQuarterTurn = uint32_t(1) << 30;

}  // namespace

// True as soon as the condition is; false if it has not become true while waiting actively.
template <typename Condition>
bool Team::spin_until(const Condition& condition) const {
  uint64_t deadline = 0;
  for (int pauses = 0;; ++pauses) {
    if (condition()) {
      return true;
    }
    if (spin_nanoseconds_ == 0) {
      return false;
    }
    pause_briefly();
    if (pauses == kPausesBetweenClockReads) {
      pauses = 0;
      const uint64_t now = now_nanoseconds();
      deadline = deadline == 0 ? now + spin_nanoseconds_ : deadline;
      if (now >= deadline) {
        return false;
      }
    }
  }
}

Range Team::claim(uint32_t run, size_t phase, const Division& division, unsigned member, unsigned active, Pace pace) {
  for (unsigned i = 0; i < active; ++i) {
    const unsigned at = (member + i) % active;
    const Range home = division.home(at, active);
    std::atomic<uint64_t>& claimed = claimed_[phase * home_count_ + at].items;
    uint64_t seen = claimed.load(std::memory_order_relaxed);
    for (;;) {
      if (is_later(run_of(seen), run)) {
        return {};
      }
      const size_t taken = run_of(seen) == run ? uint32_t(seen) : 0;
      const Range range = division.next({home.begin + taken, home.end}, pace);
      if (range.size() == 0) {
        break;
      }
      // Acquire: what the run works on was set up before its first item could be claimed.
      if (claimed.compare_exchange_weak(seen, counted(run, uint32_t(range.end - home.begin)),
                                        std::memory_order_acquire, std::memory_order_relaxed)) {
        return range;
      }
    }
  }
  return {};
}

// A sleeper announces itself before it looks at the phase for the last time, and whoever finishes the phase looks for
// sleepers afterwards; both in one total order, so no wake-up is lost.
void Team::finish(uint32_t run, size_t phase, size_t done, size_t items) {
  std::atomic<uint64_t>& finished = finished_[phase].items;
  uint64_t seen = finished.load(std::memory_order_relaxed);
  uint32_t now_finished = 0;
  do {
    now_finished = (run_of(seen) == run ? uint32_t(seen) : 0) + uint32_t(done);
  } while (!finished.compare_exchange_weak(seen, counted(run, now_finished), std::memory_order_seq_cst,
                                           std::memory_order_relaxed));
  if (now_finished == items && asleep_.load(std::memory_order_seq_cst) > 0) {
    wake_ups_.fetch_add(1, std::memory_order_seq_cst);
    wake_all(wake_ups_);
  }
}

bool Team::is_done(uint32_t run, size_t phase, size_t items) const {
  const uint64_t seen = finished_[phase].items.load(std::memory_order_seq_cst);
  return is_later(run_of(seen), run) || (run_of(seen) == run && uint32_t(seen) == items);
}

void Team::await(uint32_t run, size_t phase, size_t items) {
  const auto done = [&] { return is_done(run, phase, items); };
  if (spin_until(done)) {
    return;
  }
  asleep_.fetch_add(1, std::memory_order_seq_cst);
  for (;;) {
    const uint32_t wake_ups = wake_ups_.load(std::memory_order_seq_cst);
    if (done()) {
      break;
    }
    sleep_while(wake_ups_, wake_ups);
  }
  asleep_.fetch_sub(1, std::memory_order_relaxed);
}

// So that a phase that no run needs for long does not look later than the run. Whoever is late in an earlier run finds
// its phases done before and after: nobody but this thread changes them now.
void Team::bring_phases_along() {
  for (size_t i = 0; i < phase_count_; ++i) {
    for (size_t home = 0; home < home_count_; ++home) {
      claimed_[i * home_count_ + home].items.store(counted(run_, 0), std::memory_order_relaxed);
    }
    finished_[i].items.store(counted(run_, 0), std::memory_order_relaxed);
  }
}

void Team::run(unsigned active) {
  ++run_;
  if (run_ % kQuarterTurn == 0) {
    bring_phases_along();
  }
  if (executor_.execute != nullptr && active > 1) {
    const auto call = [](void* team, uint32_t member) {
      const Team& self = *static_cast<Team*>(team);
      self.body_(self.context_, member, self.run_);
    };
    executor_.execute(executor_.context, active, call, this);
    return;
  }
  for (unsigned i = 1; i < active; ++i) {
    Member& member = members_[i];
    member.called_to.store(run_, std::memory_order_seq_cst);
    if (member.asleep.load(std::memory_order_seq_cst) > 0) {
      wake_all(member.called_to);
    }
  }
  body_(context_, 0, run_);
}

void* Team::live(void* pointer) {
  Member& member = *static_cast<Member*>(pointer);
  Team& team = *member.team;
  uint32_t run = 0;
  for (;;) {
    const auto called = [&] { return member.called_to.load(std::memory_order_seq_cst) != run; };
    if (!team.spin_until(called)) {
      member.asleep.store(1, std::memory_order_seq_cst);
      while (!called()) {
        sleep_while(member.called_to, run);
      }
      member.asleep.store(0, std::memory_order_relaxed);
    }
    if (team.ending_.load(std::memory_order_acquire)) {
      return nullptr;
    }
    run = member.called_to.load(std::memory_order_seq_cst);
    team.body_(team.context_, member.index, run);
  }
}

bool Team::start(unsigned count, size_t phases, uint32_t spin_microseconds, Body body, void* context,
                 edgekit_executor executor, uint32_t runs_before) {
  body_ = body;
  context_ = context;
  executor_ = executor;
  run_ = runs_before;
  phase_count_ = phases;
  spin_nanoseconds_ = uint64_t(spin_microseconds) * 1000;
  home_count_ = count;
  claimed_ = new (std::nothrow) Count[phases * count];
  finished_ = new (std::nothrow) Count[phases];
  if (claimed_ == nullptr || finished_ == nullptr) {
    return false;
  }
  if (executor.execute != nullptr) {
    count_ = count;
    return true;
  }
  return start_threads();
}

bool Team::start_threads() {
  members_ = new (std::nothrow) Member[home_count_];
  if (members_ == nullptr) {
    return false;
  }
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, kStackBytes);
  bool started = true;
  for (unsigned i = 1; i < home_count_ && started; ++i) {
    members_[i].team = this;
    members_[i].index = i;
    started = pthread_create(&members_[i].thread, &attributes, live, &members_[i]) == 0;
    count_ += started ? 1 : 0;
  }
  pthread_attr_destroy(&attributes);
  return started;
}

Team::~Team() {
  ending_.store(true, std::memory_order_release);
  for (unsigned i = 1; members_ != nullptr && i < count_; ++i) {
    members_[i].called_to.fetch_add(1, std::memory_order_seq_cst);
    wake_all(members_[i].called_to);
    pthread_join(members_[i].thread, nullptr);
  }
  delete[] members_;
  delete[] claimed_;
  delete[] finished_;
}

}  // namespace edgekit
