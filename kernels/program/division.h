// How work is divided into the ranges that threads claim: weighted guided self-scheduling, each thread at a home of its
// own first.
//
// Every thread has an equal stretch of the items as its home and claims ranges from there in rising order, so that what
// it reads is one long stream for the prefetchers; when nothing is left there it goes on in the homes of the others. Each
// claim takes a part of what is left of the home: first long ranges, then ever shorter ones, and shorter from the start
// on a slow CPU, so that all threads finish together although some are slower than they were thought to be.
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

// The speed of one thread, and the mean of all that share the work; in any unit.
struct Pace {
  uint32_t speed = 1;
  uint32_t mean = 1;
};

class Division {
 public:
  // Ranges are multiples of `unit`, which divides `least` and `most`; the last of a home may be shorter than `least`, and
  // the last of all than `unit`.
  Division(size_t items, size_t unit, size_t least, size_t most)
      : items_(items), unit_(unit), least_(least), most_(most) {}

  // Items that are claimed one at a time.
  static Division one_by_one(size_t items) { return Division(items, 1, 1, 1); }

  size_t items() const { return items_; }

  // The home of thread `index` of `count`.
  Range home(size_t index, size_t count) const {
    const size_t units = (items_ + unit_ - 1) / unit_;
    return {index * units / count * unit_, std::min(items_, (index + 1) * units / count * unit_)};
  }

  // The part of `left` that comes first.
  Range next(Range left, Pace pace) const {
    const size_t fair = size_t(uint64_t(left.size()) * std::min(pace.speed, pace.mean) / (kPartsOfLeft * pace.mean));
    return {left.begin, left.begin + std::min(left.size(), std::clamp(fair / unit_ * unit_, least_, most_))};
  }

 private:
  // A thread claims 1 / kPartsOfLeft of what is left: it may be that much slower than it was thought to be and still be
  // done before the others run out of work.
  static constexpr uint64_t kPartsOfLeft = 2;

  size_t items_;
  size_t unit_;
  size_t least_;
  size_t most_;
};

}  // namespace edgekit
