// Teams: every piece is done once and before the next phase, whoever is late.
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
  static constexpr size_t kPieces = 13;
  static constexpr uint32_t kMostRuns = 1000;

  std::vector<int> numbers = std::vector<int>(kPieces, 0);
  std::atomic<int> wrong{0};
  std::atomic<int> begun{0};
  uint32_t runs_before = 0;  // that did no work
  unsigned late_member = 0;  // looks at the first phase only when it is let go, unless 0
  std::atomic<bool> let_go{false};
  std::atomic<bool> gave_up{false};
  Team team;  // the last: its threads end before what they use does

  static void work(void* context, unsigned member, uint32_t run) {
    auto& self = *static_cast<Counting*>(context);
    self.begun++;
    if (run - self.runs_before - 1 > kMostRuns) return;
    if (member != 0 && member == self.late_member) self.wait_to_be_let_go();
    for (size_t phase = 0; phase < kPhases; phase++) {
      size_t done = 0;
      for (size_t piece; (piece = self.team.claim(run, phase, kPieces)) != Team::kNone; done++) {
        const int expected = static_cast<int>((run - self.runs_before - 1) * kPhases + phase);
        // A neighbour's number: it is complete only if phases do not overlap.
        const int neighbour = __atomic_load_n(&self.numbers[(piece + 1) % kPieces], __ATOMIC_RELAXED);
        if (self.numbers[piece] != expected || neighbour < expected) self.wrong++;
        __atomic_store_n(&self.numbers[piece], expected + 1, __ATOMIC_RELAXED);
      }
      if (done > 0) self.team.finish(run, phase, done, kPieces);
      self.team.await(run, phase, kPieces);
    }
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

TEST(every_piece_is_done_once_and_phases_do_not_overlap) {
  for (const unsigned threads : {1u, 2u, 3u, 8u}) {
    for (const uint32_t spin : {0u, 50u}) {
      Counting counting;
      CHECK(counting.team.start(threads, Counting::kPhases, spin, Counting::work, &counting));
      CHECK(counting.team.count() == threads);
      constexpr int kRuns = 50;
      for (int run = 1; run <= kRuns; run++) {
        counting.team.run(threads);
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
    constexpr uint32_t kIdle = 32;
    CHECK(counting.team.start(3, Counting::kPhases, 0, Counting::work, &counting, runs_before - kIdle));
    for (uint32_t run = 0; run < kIdle; run++) counting.team.run(run % 2 == 0 ? 3 : 1);
    for (int run = 1; run <= 40; run++) {
      counting.team.run(run % 2 == 0 ? 3 : 1);
      CHECK_THAT(counting.all_are(run * static_cast<int>(Counting::kPhases)), "%d runs after %u", run, runs_before);
    }
    CHECK(counting.wrong == 0);
  }
}

TEST(a_member_that_comes_late_holds_nobody_up) {
  Counting counting;
  counting.late_member = 1;
  CHECK(counting.team.start(2, Counting::kPhases, 50, Counting::work, &counting));
  for (int run = 1; run <= 10; run++) {
    counting.team.run(2);
    CHECK(counting.all_are(run * static_cast<int>(Counting::kPhases)));
  }
  CHECK(!counting.gave_up);
  counting.let_go = true;
  for (int run = 11; run <= 20; run++) {
    counting.team.run(2);
    CHECK(counting.all_are(run * static_cast<int>(Counting::kPhases)));
  }
  CHECK(counting.wrong == 0);
}

TEST(members_that_are_not_active_are_not_called) {
  Counting counting;
  CHECK(counting.team.start(4, Counting::kPhases, 0, Counting::work, &counting));
  counting.team.run(1);
  sleep_milliseconds(5);
  CHECK(counting.begun == 1);
  CHECK(counting.all_are(static_cast<int>(Counting::kPhases)));
}

TEST(a_team_ends_while_its_members_sleep) {
  Counting counting;
  CHECK(counting.team.start(3, Counting::kPhases, 0, Counting::work, &counting));
  counting.team.run(3);
  sleep_milliseconds(5);
}

}  // namespace
}  // namespace edgekit::testing

EDGEKIT_TEST_MAIN
