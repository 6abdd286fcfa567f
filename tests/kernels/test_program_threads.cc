// Teams: every item is done once and before the next phase, whoever is late or slow.
#include <time.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <vector>

#include "check.h"
#include "executors.h"
#include "program/threads.h"

namespace edgekit::testing {
namespace {

void sleep_milliseconds(long milliseconds) {
  const timespec time = {0, milliseconds * 1000000};
  nanosleep(&time, nullptr);
}

// Each run adds one to every number of every phase, after looking whether all were what the run and the phase before
// left. Some phases have fewer items than there are members, so that homes are empty.
struct Counting {
  static constexpr size_t kPhases = 20;
  static constexpr size_t kItems[] = {37, 1, 2, 3, 5, 9};  // in turn
  static constexpr uint32_t kMostRuns = 1000;

  std::vector<int> numbers[kPhases];
  std::atomic<int> wrong{0};
  std::atomic<int> begun{0};
  uint32_t runs_before = 0;  // that did no work
  std::vector<unsigned> active = {1};  // members of each run, in turn
  Team team;  // the last: its threads end before what they use does

  Counting() {
    for (size_t phase = 0; phase < kPhases; phase++) numbers[phase].resize(kItems[phase % std::size(kItems)]);
  }

  unsigned active_in(uint32_t run) const { return active[run % active.size()]; }

  void run_once() { team.run(active_in(team.next_run())); }

  static void work(void* context, unsigned member, uint32_t run) {
    auto& self = *static_cast<Counting*>(context);
    self.begun++;
    if (run - self.runs_before - 1 > kMostRuns) return;
    const Pace pace = {member + 1, 4};
    const unsigned active = self.active_in(run);
    for (size_t phase = 0; phase < kPhases; phase++) {
      const size_t items = self.numbers[phase].size();
      const Division division(items, 1, 1, items);
      size_t done = 0;
      for (Range range; (range = self.team.claim(run, phase, division, member, active, pace)).size() > 0;) {
        for (size_t item = range.begin; item < range.end; item++) self.count(run, phase, item);
        done += range.size();
      }
      if (done > 0) self.team.finish(run, phase, done, items);
      self.team.await(run, phase, items);
    }
  }

  void count(uint32_t run, size_t phase, size_t item) {
    const int runs = static_cast<int>(run - runs_before - 1);
    // Complete only if phases do not overlap.
    const std::vector<int>& before = numbers[(phase + kPhases - 1) % kPhases];
    if (before[item % before.size()] != (phase == 0 ? runs : runs + 1) || numbers[phase][item] != runs) wrong++;
    numbers[phase][item]++;
  }

  bool all_are(int expected) const {
    for (const std::vector<int>& of_phase : numbers) {
      for (const int number : of_phase) {
        if (number != expected) return false;
      }
    }
    return true;
  }
};

TEST(every_item_is_done_once_and_phases_do_not_overlap) {
  for (const unsigned threads : {1u, 2u, 3u, 8u}) {
    for (const uint32_t spin : {0u, 50u}) {
      Counting counting;
      counting.active = {threads};
      CHECK(counting.team.start(threads, Counting::kPhases, spin, Counting::work, &counting));
      CHECK(counting.team.count() == threads);
      constexpr int kRuns = 50;
      for (int run = 1; run <= kRuns; run++) {
        counting.run_once();
        CHECK_THAT(counting.all_are(run), "threads %u, run %d", threads, run);
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
    counting.active = {3, 1};
    constexpr uint32_t kIdle = 32;
    CHECK(counting.team.start(3, Counting::kPhases, 0, Counting::work, &counting, {}, runs_before - kIdle));
    for (uint32_t run = 0; run < kIdle; run++) counting.run_once();
    for (int run = 1; run <= 40; run++) {
      counting.run_once();
      CHECK_THAT(counting.all_are(run), "%d runs after %u", run, runs_before);
    }
    CHECK(counting.wrong == 0);
  }
}

// Members of a run before may still be on their way, at homes that the run does not have.
TEST(the_number_of_active_members_may_change_from_run_to_run) {
  for (const uint32_t spin : {0u, 50u}) {
    Counting counting;
    counting.active = {8, 1, 3, 2, 8, 5, 1};
    CHECK(counting.team.start(8, Counting::kPhases, spin, Counting::work, &counting));
    for (int run = 1; run <= 140; run++) {
      counting.run_once();
      CHECK_THAT(counting.all_are(run), "run %d", run);
    }
    CHECK(counting.wrong == 0);
  }
}

// The second member is kept at the beginning of run 1 and goes through it while the caller, which works alone, holds a
// later run in one of its phases.
struct Late {
  static constexpr size_t kPhases = 2;
  static constexpr size_t kItems = 8;

  const Division division = Division::one_by_one(kItems);
  uint32_t held_run = 2;
  size_t held_phase = 0;
  int numbers[kPhases][kItems] = {};
  std::atomic<bool> is_in{false};
  std::atomic<bool> let_go{false};
  std::atomic<bool> claimed_late{false};
  std::atomic<bool> is_through{false};
  Team team;

  static void work(void* context, unsigned member, uint32_t run) {
    auto& self = *static_cast<Late*>(context);
    if (member == 0) return self.work_alone(run);
    if (run == 1) self.come_late();
  }

  void work_alone(uint32_t run) {
    if (run == 1) wait_for(is_in, "the member is in run 1");
    for (size_t phase = 0; phase < kPhases; phase++) {
      for (Range range; (range = team.claim(run, phase, division, 0, 2, {})).size() > 0;) {
        for (size_t item = range.begin; item < range.end; item++) numbers[phase][item]++;
        if (run != held_run || phase != held_phase) continue;
        let_go = true;
        wait_for(is_through, "the late member is through run 1");
      }
      team.finish(run, phase, kItems, kItems);
      team.await(run, phase, kItems);
    }
  }

  void come_late() {
    is_in = true;
    wait_for(let_go, "the late member is let go");
    for (size_t phase = 0; phase < kPhases; phase++) {
      if (team.claim(1, phase, division, 1, 2, {}).size() > 0) claimed_late = true;
      team.await(1, phase, kItems);
    }
    is_through = true;
  }

  // Ends the program if it is in vain: a member that is stuck cannot be joined.
  static void wait_for(const std::atomic<bool>& flag, const char* what) {
    for (int milliseconds = 0; !flag; milliseconds++) {
      if (milliseconds == 10000) {
        std::printf("FAIL never: %s\n", what);
        std::fflush(stdout);
        std::_Exit(1);
      }
      sleep_milliseconds(1);
    }
  }
};

TEST(a_member_that_comes_late_holds_nobody_up_and_claims_nothing) {
  for (const uint32_t held_run : {2u, 10u}) {
    for (const size_t held_phase : {0u, 1u}) {
      Late late;
      late.held_run = held_run;
      late.held_phase = held_phase;
      CHECK(late.team.start(2, Late::kPhases, 50, Late::work, &late));
      for (uint32_t run = 1; run <= held_run; run++) late.team.run(2);
      CHECK_THAT(!late.claimed_late, "run %u, phase %zu", held_run, held_phase);
      for (const auto& of_phase : late.numbers) {
        for (const int number : of_phase) CHECK(number == static_cast<int>(held_run));
      }
    }
  }
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

TEST(an_executor_may_call_the_members_on_any_threads_and_one_after_another) {
  for (const edgekit_executor& executor : kExecutors) {
    for (const uint32_t spin : {0u, 50u}) {
      Counting counting;
      counting.active = {4, 1, 3};
      CHECK(counting.team.start(4, Counting::kPhases, spin, Counting::work, &counting, executor));
      CHECK(counting.team.count() == 4);
      constexpr int kRuns = 30;
      for (int run = 1; run <= kRuns; run++) {
        counting.run_once();
        CHECK_THAT(counting.all_are(run), "executor %td, run %d", &executor - kExecutors, run);
      }
      CHECK(counting.wrong == 0);
      CHECK(counting.begun == (4 + 1 + 3) * kRuns / 3);
    }
  }
}

TEST(members_that_are_not_active_are_not_called) {
  Counting counting;
  CHECK(counting.team.start(4, Counting::kPhases, 0, Counting::work, &counting));
  counting.run_once();
  sleep_milliseconds(5);
  CHECK(counting.begun == 1);
  CHECK(counting.all_are(1));
}

TEST(a_team_ends_while_its_members_sleep) {
  Counting counting;
  counting.active = {3};
  CHECK(counting.team.start(3, Counting::kPhases, 0, Counting::work, &counting));
  counting.run_once();
  sleep_milliseconds(5);
}

}  // namespace
}  // namespace edgekit::testing

EDGEKIT_TEST_MAIN
