// The division of work into ranges: all of it, once, in order, more for the faster.
#include <initializer_list>
#include <vector>

#include "check.h"
#include "program/division.h"

namespace edgekit::testing {
namespace {

// Claims ranges for each share in turn. What each got; empty if a range breaks a bound.
std::vector<size_t> claim_in_turn(const Division& division, size_t unit, size_t least, size_t most,
                                  const std::vector<Share>& shares) {
  std::vector<size_t> got(shares.size());
  size_t taken = 0;
  for (size_t turn = 0; taken < division.items(); turn = (turn + 1) % shares.size()) {
    const Range range = division.next(taken, shares[turn]);
    const bool is_last = range.end == division.items();
    if (range.begin != taken || range.end <= taken || range.end > division.items()) return {};
    if (range.size() > most || range.size() % unit != 0 || (!is_last && range.size() < least)) return {};
    got[turn] += range.size();
    taken = range.end;
  }
  return got;
}

TEST(ranges_cover_all_items_once_within_their_bounds) {
  for (const size_t items : {2u, 4u, 6u, 8u, 36u, 160u, 704u, 3072u, 65536u}) {
    for (const uint32_t threads : {1u, 2u, 3u, 4u, 8u, 256u}) {
      for (const size_t unit : {1u, 2u}) {
        for (const size_t least : {2u, 6u}) {
          for (const size_t most : {6u, 1024u}) {
            const Division division(items, unit, least, most);
            CHECK_THAT(!claim_in_turn(division, unit, least, most, {{1, threads}}).empty(),
                       "%zu items in units of %zu, %zu to %zu, %u threads", items, unit, least, most, threads);
          }
        }
      }
    }
  }
}

TEST(each_of_two_equal_threads_takes_a_quarter_of_what_is_left) {
  const Division division(704, 2, 2, 1024);
  const Share half = {1, 2};
  CHECK(division.next(0, half).end == 176);
  CHECK(division.next(176, half).end == 176 + 132);
  // 396 / 4 = 99, in pairs 98.
  CHECK(division.next(308, half).end == 308 + 98);
  CHECK(division.next(700, half).end == 702);
  CHECK(division.next(702, half).end == 704);
}

TEST(a_thread_takes_as_much_as_it_is_fast) {
  const Division division(100000, 1, 1, 100000);
  // 3 of 4 parts of a half, then 1 of 4 parts of half of the other 62500.
  CHECK(division.next(0, {768, 1024}).end == 37500);
  CHECK(division.next(37500, {256, 1024}).end == 37500 + 7812);
  const std::vector<size_t> got = claim_in_turn(division, 1, 1, 100000, {{300, 400}, {100, 400}});
  CHECK_THAT(got.size() == 2 && got[0] > 3 * got[1] && got[0] < 5 * got[1], "%zu and %zu", got[0], got[1]);
}

TEST(the_largest_speeds_and_counts_do_not_overflow) {
  const Division division(UINT32_MAX, 1, 1, SIZE_MAX);
  CHECK(division.next(0, {UINT32_MAX, UINT32_MAX}).end == UINT32_MAX / 2);
}

TEST(items_one_by_one_are_ranges_of_one) {
  const Division division = Division::one_by_one(3);
  CHECK(division.next(0, {1, 1}).end == 1);
  CHECK(division.next(2, {1, 1}).end == 3);
  CHECK(division.next(3, {1, 1}).size() == 0);
  CHECK(Division::one_by_one(0).next(0, {1, 1}).size() == 0);
}

}  // namespace
}  // namespace edgekit::testing

EDGEKIT_TEST_MAIN
