// How work is divided into the ranges that threads claim in rising order: weighted guided self-scheduling.
//
// Each claim takes a part of what is left that corresponds to the speed of the thread's CPU: first long streams of
// weights for the prefetchers, then ever shorter ones, so that all threads finish together although some are slower than
// they were thought to be.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <algorithm>

namespace edgekit {

// Items [begin, end).
struct Range {
  size_t begin = 0;
  size_t end = 0;

  size_t size() const { return end - begin; }
};

// The speed of one thread, and of all that share the work together; in any unit.
struct Share {
  uint32_t speed = 1;
  uint32_t of_all = 1;
};

class Division {
 public:
  // Ranges are multiples of `unit`, which divides `items`, `least` and `most`; the last may be shorter than `least`.
  Division(size_t items, size_t unit, size_t least, size_t most)
      : items_(items), unit_(unit), least_(least), most_(most) {}

  // Items that are claimed one at a time.
  static Division one_by_one(size_t items) { return Division(items, 1, 1, 1); }

  size_t items() const { return items_; }

  // The next range when `taken` items are.
  Range next(size_t taken, Share share) const {
    const size_t left = items_ - taken;
    const size_t fair = size_t(uint64_t(left) * share.speed / (kClaimsOfAll * uint64_t(share.of_all)));
    return {taken, taken + std::min(left, std::clamp(fair / unit_ * unit_, least_, most_))};
  }

 private:
  // The threads together claim 1 / kClaimsOfAll of what is left: a thread may be that much slower than it was thought
  // to be and still be done before the others run out of work.
  static constexpr uint64_t kClaimsOfAll = 2;

  size_t items_;
  size_t unit_;
  size_t least_;
  size_t most_;
};

}  // namespace edgekit
