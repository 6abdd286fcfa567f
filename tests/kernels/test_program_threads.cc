// Teams: every item is done once and before the next phase, whoever is late or slow.
#include <time.h>

#include <atomic>
#include <vector>

#include "check.h"
#include "program/threads.h"

namespace edgekit::testing {
namespace {

void sleep_milliseconds(long milliseconds) {
  const timespec time = {0, milliseconds * 1000000};
  nanosleep(&time, nullptr);
}

// Each phase adds one to every number, after looking whether all were what the phase before left.
struct Counting {
  static constexpr size_t kPhases = 20;
  static constexpr size_t kItems = 37;
  static constexpr uint32_t kMostRuns = 1000;

  const Division division = Division(kItems, 1, 1, kItems);
  std::vector<int> numbers = std::vector<int>(kItems, 0);
  std::atomic<int> wrong{0};
  std::atomic<int> begun{0};
  uint32_t runs_before = 0;  // that did no work
  unsigned active[2] = {1, 1};  // members in even runs and in odd ones
  unsigned late_member = 0;  // looks at the first phase only when it is let go, unless 0
  std::atomic<bool> let_go{false};
  std::atomic<bool> gave_up{false};
  Team team;  // the last: its threads end before what they use does

  void run_once() { team.run(active[team.next_run() % 2]); }

  static void work(void* context, unsigned member, uint32_t run) {
    auto& self = *static_cast<Counting*>(context);
    self.begun++;
    if (run - self.runs_before - 1 > kMostRuns) return;
    if (member != 0 && member == self.late_member) self.wait_to_be_let_go();
    for (size_t phase = 0; phase < kPhases; phase++) {
      size_t done = 0;
      const Pace pace = {member + 1, 4};
      const unsigned active = self.active[run % 2];
      for (Range range; (range = self.team.claim(run, phase, self.division, member, active, pace)).size() > 0;) {
        for (size_t item = range.begin; item < range.end; item++) self.count(run, phase, item);
        done += range.size();
      }
      if (done > 0) self.team.finish(run, phase, done, kItems);
      self.team.await(run, phase, kItems);
    }
  }

  void count(uint32_t run, size_t phase, size_t item) {
    const int expected = static_cast<int>((run - runs_before - 1) * kPhases + phase);
    // A neighbour's number: it is complete only if phases do not overlap.
    const int neighbour = __atomic_load_n(&numbers[(item + 1) % kItems], __ATOMIC_RELAXED);
    if (numbers[item] != expected || neighbour < expected) wrong++;
    __atomic_store_n(&numbers[item], expected + 1, __ATOMIC_RELAXED);
  }

  // For so long that only a team that waits for this member makes it give up.
  void wait_to_be_let_go() {
    for (int milliseconds = 0; !let_go && !gave_up; milliseconds++) {
      if (milliseconds == 30000) gave_up = true;
      sleep_milliseconds(1);
    }
  }

  bool all_are(int expected) const {
    for (const int number : numbers) {
      if (number != expected) return false;
    }
    return true;
  }
};

TEST(every_item_is_done_once_and_phases_do_not_overlap) {
  for (const unsigned threads : {1u, 2u, 3u, 8u}) {
    for (const uint32_t spin : {0u, 50u}) {
      Counting counting;
      counting.active[0] = counting.active[1] = threads;
      CHECK(counting.team.start(threads, Counting::kPhases, spin, Counting::work, &counting));
      CHECK(counting.team.count() == threads);
      constexpr int kRuns = 50;
      for (int run = 1; run <= kRuns; run++) {
        counting.run_once();
        CHECK_THAT(counting.all_are(run * static_cast<int>(Counting::kPhases)), "threads %u, run %d", threads, run);
      }
      CHECK(counting.wrong == 0);
    }
  }
}

// Phases that no run has touched for half of all run numbers, and the run numbers' own end.
TEST(no_phase_is_taken_for_a_later_one_when_run_numbers_wrap) {
  for (const uint32_t runs_before : {0x40000010u, 0x80000010u, 0xc0000010u, 0xffffffffu, 0x00000010u}) {
    Counting counting;
    counting.runs_before = runs_before;
    counting.active[0] = 3;
    constexpr uint32_t kIdle = 32;
    CHECK(counting.team.start(3, Counting::kPhases, 0, Counting::work, &counting, runs_before - kIdle));
    for (uint32_t run = 0; run < kIdle; run++) counting.run_once();
    for (int run = 1; run <= 40; run++) {
      counting.run_once();
      CHECK_THAT(counting.all_are(run * static_cast<int>(Counting::kPhases)), "%d runs after %u", run, runs_before);
    }
    CHECK(counting.wrong == 0);
  }
}

TEST(a_member_that_comes_late_holds_nobody_up) {
  Counting counting;
  counting.late_member = 1;
  counting.active[0] = counting.active[1] = 2;
  CHECK(counting.team.start(2, Counting::kPhases, 50, Counting::work, &counting));
  for (int run = 1; run <= 10; run++) {
    counting.run_once();
    CHECK(counting.all_are(run * static_cast<int>(Counting::kPhases)));
  }
  CHECK(!counting.gave_up);
  counting.let_go = true;
  for (int run = 11; run <= 20; run++) {
    counting.run_once();
    CHECK(counting.all_are(run * static_cast<int>(Counting::kPhases)));
  }
  CHECK(counting.wrong == 0);
}

// One phase a run. A slow member keeps its first range of a run until all others are claimed.
struct Unequal {
  static constexpr size_t kItems = 1000;

  const Division division = Division(kItems, 2, 2, kItems);
  std::vector<Pace> paces;
  std::atomic<size_t> claimed{0};
  std::atomic<size_t> got[2] = {};
  std::atomic<bool> slow_has_begun{false};
  Team team;

  static void work(void* context, unsigned member, uint32_t run) {
    auto& self = *static_cast<Unequal*>(context);
    // The caller leaves the first range to the slow member.
    while (member == 0 && !self.slow_has_begun) sleep_milliseconds(1);
    size_t done = 0;
    for (Range range; (range = self.team.claim(run, 0, self.division, member, 2, self.paces[member])).size() > 0;) {
      self.claimed += range.size();
      if (member == 1) self.slow_has_begun = true;
      while (member == 1 && self.claimed < kItems) sleep_milliseconds(1);
      done += range.size();
    }
    self.got[member] += done;
    if (done > 0) self.team.finish(run, 0, done, kItems);
    self.team.await(run, 0, kItems);
  }

  void run_once() {
    CHECK(team.start(2, 1, 50, work, this));
    team.run(2);
    CHECK(got[0] + got[1] == kItems);
  }
};

TEST(a_slow_member_gets_its_first_range_and_the_others_the_rest) {
  Unequal equals;
  equals.paces = {{1, 1}, {1, 1}};
  equals.run_once();
  CHECK_THAT(equals.got[1] == 250, "%zu", equals.got[1].load());
}

TEST(a_member_known_to_be_slow_gets_a_shorter_range) {
  Unequal unequal;
  unequal.paces = {{900, 500}, {100, 500}};
  unequal.run_once();
  CHECK_THAT(unequal.got[1] == 50, "%zu", unequal.got[1].load());
}

TEST(members_that_are_not_active_are_not_called) {
  Counting counting;
  CHECK(counting.team.start(4, Counting::kPhases, 0, Counting::work, &counting));
  counting.run_once();
  sleep_milliseconds(5);
  CHECK(counting.begun == 1);
  CHECK(counting.all_are(static_cast<int>(Counting::kPhases)));
}

TEST(a_team_ends_while_its_members_sleep) {
  Counting counting;
  counting.active[0] = counting.active[1] = 3;
  CHECK(counting.team.start(3, Counting::kPhases, 0, Counting::work, &counting));
  counting.run_once();
  sleep_milliseconds(5);
}

}  // namespace
}  // namespace edgekit::testing

EDGEKIT_TEST_MAIN
