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

}  // namespace

// A sleeper announces itself before it looks at the word for the last time, and whoever changes the word looks for
// sleepers afterwards; both in one total order, so no wake-up is lost.
void Team::await_change(std::atomic<uint32_t>& word, uint32_t seen, std::atomic<uint32_t>& asleep) const {
  uint64_t deadline = 0;
  for (int pauses = 0; spin_nanoseconds_ > 0; ++pauses) {
    if (word.load(std::memory_order_acquire) != seen) {
      return;
    }
    pause_briefly();
    if (pauses == kPausesBetweenClockReads) {
      pauses = 0;
      const uint64_t now = now_nanoseconds();
      deadline = deadline == 0 ? now + spin_nanoseconds_ : deadline;
      if (now >= deadline) {
        break;
      }
    }
  }
  asleep.fetch_add(1, std::memory_order_seq_cst);
  while (word.load(std::memory_order_seq_cst) == seen) {
    sleep_while(word, seen);
  }
  asleep.fetch_sub(1, std::memory_order_relaxed);
}

void Team::barrier() {
  if (active_ == 1) {
    next_.store(0, std::memory_order_relaxed);
    return;
  }
  const uint32_t generation = generation_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 < active_) {
    await_change(generation_, generation, asleep_);
    return;
  }
  arrived_.store(0, std::memory_order_relaxed);
  next_.store(0, std::memory_order_relaxed);
  generation_.store(generation + 1, std::memory_order_seq_cst);
  if (asleep_.load(std::memory_order_seq_cst) > 0) {
    wake_all(generation_);
  }
}

void Team::run(unsigned active, Body body, void* context) {
  active_ = active;
  body_ = body;
  context_ = context;
  next_.store(0, std::memory_order_relaxed);
  for (unsigned i = 1; i < active; ++i) {
    Member& member = members_[i];
    member.ticket.fetch_add(1, std::memory_order_seq_cst);
    if (member.asleep.load(std::memory_order_seq_cst) > 0) {
      wake_all(member.ticket);
    }
  }
  body(context, 0);
}

void* Team::live(void* pointer) {
  Member& member = *static_cast<Member*>(pointer);
  Team& team = *member.team;
  uint32_t ticket = 0;
  for (;;) {
    team.await_change(member.ticket, ticket, member.asleep);
    ++ticket;
    if (team.ending_.load(std::memory_order_acquire)) {
      return nullptr;
    }
    team.body_(team.context_, member.index);
  }
}

bool Team::start(unsigned count, uint32_t spin_microseconds) {
  spin_nanoseconds_ = uint64_t(spin_microseconds) * 1000;
  members_ = new (std::nothrow) Member[count];
  if (members_ == nullptr) {
    return false;
  }
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, kStackBytes);
  bool started = true;
  for (unsigned i = 1; i < count && started; ++i) {
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
  for (unsigned i = 1; i < count_; ++i) {
    members_[i].ticket.fetch_add(1, std::memory_order_seq_cst);
    wake_all(members_[i].ticket);
    pthread_join(members_[i].thread, nullptr);
  }
  delete[] members_;
}

}  // namespace edgekit
