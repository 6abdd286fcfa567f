// The division of tiles into pieces: all of them, once, in order, large before small.
#include <initializer_list>

#include "check.h"
#include "program/division.h"

namespace edgekit::testing {
namespace {

// True if the pieces cover [0, tiles) without gap or overlap and keep the bounds.
bool covers(const Division& division, size_t tiles, size_t unit, size_t most) {
  size_t at = 0;
  for (size_t piece = 0; piece < division.count(); piece++) {
    const size_t begin = division.begin(piece), end = division.end(piece);
    const bool is_last = piece + 1 == division.count();
    if (begin != at || end <= begin || end - begin > most) return false;
    if (!is_last && (end - begin) % unit != 0) return false;
    at = end;
  }
  return at == tiles;
}

TEST(pieces_cover_all_tiles_once) {
  for (const size_t tiles : {1u, 2u, 3u, 7u, 8u, 36u, 160u, 704u, 3072u, 65536u}) {
    for (const size_t threads : {1u, 2u, 3u, 4u, 8u, 256u}) {
      for (const size_t least : {1u, 2u, 6u}) {
        CHECK_THAT(covers(Division::falling(tiles, 1, least, 1024, threads), tiles, 1, 1024), "%zu tiles, %zu threads",
                   tiles, threads);
        if (tiles % 2 == 0 && least % 2 == 0) {
          CHECK_THAT(covers(Division::falling(tiles, 2, least, 1024, threads), tiles, 2, 1024),
                     "%zu tiles in pairs, %zu threads", tiles, threads);
        }
      }
    }
    CHECK(covers(Division::equal(tiles, 4), tiles, 4, 4));
  }
}

TEST(two_threads_get_eighths_then_sixteenths_of_the_tiles) {
  const Division division = Division::falling(704, 2, 2, 1024, 2);
  // 704 / 8 = 88, four of them; the other 352 / 8 = 44, four; 176 / 8 = 22, four; 88 / 8 = 11, in pairs 10, four.
  CHECK(division.end(0) == 88 && division.begin(4) == 352);
  CHECK(division.end(4) == 396 && division.begin(8) == 528);
  CHECK(division.end(8) == 550 && division.begin(12) == 616);
  CHECK(division.end(12) == 626 && division.begin(16) == 656);
}

TEST(no_division_makes_no_pieces) { CHECK(Division::equal(0, 1).count() == 0); }

}  // namespace
}  // namespace edgekit::testing

EDGEKIT_TEST_MAIN
