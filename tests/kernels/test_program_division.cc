// The division of work into homes and ranges: all of it, once, in order, less for the slower.
#include <initializer_list>

#include "check.h"
#include "program/division.h"

namespace edgekit::testing {
namespace {

// Claims the whole of a home. How many ranges that takes; 0 if one of them breaks a bound.
size_t claim_all(const Division& division, Range home, size_t unit, size_t least, size_t most, Pace pace) {
  size_t ranges = 0;
  for (Range left = home; left.size() > 0; ranges++) {
    const Range range = division.next(left, pace);
    const bool is_last = range.end == home.end;
    if (range.begin != left.begin || range.size() == 0 || range.end > home.end) return 0;
    if (range.size() > most || range.size() % unit != 0 || (!is_last && range.size() < least)) return 0;
    left.begin = range.end;
  }
  return ranges;
}

TEST(homes_follow_each_other_and_differ_by_a_unit_at_most) {
  for (const size_t items : {1u, 2u, 3u, 4u, 6u, 8u, 36u, 37u, 160u, 704u, 3072u, 65535u}) {
    for (const size_t threads : {1u, 2u, 3u, 4u, 8u, 256u}) {
      for (const size_t unit : {1u, 2u}) {
        const Division division(items, unit, unit, items);
        size_t end = 0;
        for (size_t i = 0; i < threads; i++) {
          const Range home = division.home(i, threads);
          const bool is_whole = home.size() % unit == 0 || home.end == items;
          CHECK_THAT(home.begin == end && is_whole && home.size() + unit > items / unit / threads * unit &&
                         home.size() <= (items / unit / threads + 1) * unit,
                     "home %zu of %zu, %zu items", i, threads, items);
          end = home.end;
        }
        CHECK(end == items);
      }
    }
  }
}

TEST(ranges_cover_a_home_once_within_their_bounds) {
  for (const size_t items : {2u, 4u, 6u, 8u, 36u, 160u, 704u, 3072u, 65536u}) {
    for (const uint32_t mean : {1u, 5u, 1024u}) {
      for (const size_t unit : {1u, 2u}) {
        for (const size_t least : {2u, 6u}) {
          for (const size_t most : {6u, 1024u}) {
            const Division division(items, unit, least, most);
            CHECK_THAT(claim_all(division, division.home(2, 3), unit, least, most, {3, mean}) > 0 ||
                           division.home(2, 3).size() == 0,
                       "%zu items in units of %zu, %zu to %zu, mean %u", items, unit, least, most, mean);
          }
        }
      }
    }
  }
}

TEST(a_thread_takes_half_of_what_is_left_of_a_home) {
  const Division division(704, 2, 2, 1024);
  CHECK(division.next({0, 352}, {}).end == 176);
  CHECK(division.next({176, 352}, {}).end == 264);
  // 22 / 2 = 11, in pairs 10.
  CHECK(division.next({330, 352}, {}).end == 340);
  CHECK(division.next({350, 352}, {}).end == 352);
}

TEST(a_slow_thread_takes_less_and_a_fast_one_no_more) {
  const Division division(100000, 1, 1, 100000);
  CHECK(division.next({0, 1000}, {256, 512}).end == 250);
  CHECK(division.next({0, 1000}, {768, 512}).end == 500);
}

TEST(the_largest_speeds_and_counts_do_not_overflow) {
  const Division division(UINT32_MAX, 1, 1, SIZE_MAX);
  CHECK(division.next({0, UINT32_MAX}, {UINT32_MAX, UINT32_MAX}).end == UINT32_MAX / 2);
}

TEST(items_one_by_one_are_ranges_of_one) {
  const Division division = Division::one_by_one(3);
  CHECK(division.next({0, 3}, {}).end == 1);
  CHECK(division.next({2, 3}, {}).end == 3);
  CHECK(division.next({3, 3}, {}).size() == 0);
}

}  // namespace
}  // namespace edgekit::testing

EDGEKIT_TEST_MAIN
