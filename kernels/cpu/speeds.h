// How fast the CPUs that this process may run on are beside each other (big.LITTLE), as the system tells.
#pragma once

#include <sched.h>
#include <stddef.h>
#include <stdint.h>

#include <initializer_list>

namespace edgekit {

class CpuSpeeds {
 public:
  static constexpr uint32_t kFastest = 1024;

  // CPUs 0, 1 and so on with the speeds given, in any unit.
  CpuSpeeds(std::initializer_list<uint64_t> speeds);

  // Those of `folder`, laid out as /sys/devices/system/cpu: the capacities, else the highest clocks. All CPUs are equal
  // if one of them tells neither.
  static CpuSpeeds read(const char* folder = "/sys/devices/system/cpu");

  unsigned count() const { return count_; }
  bool are_equal() const { return are_equal_; }

  // 1 to kFastest, which the fastest has. A CPU that is not known is as fast as the fastest.
  uint32_t of(unsigned cpu) const { return cpu < CPU_SETSIZE && speed_[cpu] > 0 ? speed_[cpu] : kFastest; }

  // Of the CPU that the calling thread runs on now.
  uint32_t of_current() const;

  // Of the n-th fastest CPU, counted from 1; of the slowest if there are fewer.
  uint32_t of_nth(unsigned n) const;

  // How many CPUs are as fast as that or faster.
  unsigned at_least(uint32_t speed) const;

  // Lets the calling thread run only on CPUs as fast as the n-th fastest or faster.
  void keep_to_fastest(unsigned n) const;

 private:
  CpuSpeeds() = default;
  void scale(const uint64_t* given);

  uint16_t speed_[CPU_SETSIZE] = {};  // 0: not for this process
  unsigned count_ = 0;
  bool are_equal_ = true;
};

}  // namespace edgekit
