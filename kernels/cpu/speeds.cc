#include "cpu/speeds.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <functional>

namespace edgekit {
namespace {

constexpr uint64_t kHighestSpeed = UINT64_MAX / CpuSpeeds::kFastest;

// The number in a file, or 0.
uint64_t read_number(const char* folder, unsigned cpu, const char* name) {
  char path[512];
  snprintf(path, sizeof path, "%s/cpu%u/%s", folder, cpu, name);
  const int file = open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0) {
    return 0;
  }
  char text[32] = {};
  const ssize_t got = ::read(file, text, sizeof text - 1);
  close(file);
  return got > 0 && text[0] != '-' ? strtoull(text, nullptr, 10) : 0;
}

}  // namespace

// `given` [CPU_SETSIZE], 0 where there is no CPU.
void CpuSpeeds::scale(const uint64_t* given) {
  const uint64_t fastest = std::max<uint64_t>(1, std::min(*std::max_element(given, given + CPU_SETSIZE), kHighestSpeed));
  for (size_t cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (given[cpu] > 0) {
      speed_[cpu] = uint16_t(std::max<uint64_t>(1, std::min(given[cpu], fastest) * kFastest / fastest));
      are_equal_ = are_equal_ && speed_[cpu] == kFastest;
      ++count_;
    }
  }
}

CpuSpeeds::CpuSpeeds(std::initializer_list<uint64_t> speeds) {
  uint64_t given[CPU_SETSIZE] = {};
  std::copy_n(speeds.begin(), std::min<size_t>(speeds.size(), CPU_SETSIZE), given);
  scale(given);
}

CpuSpeeds CpuSpeeds::read(const char* folder) {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0 || CPU_COUNT(&allowed) == 0) {
    CPU_SET(0, &allowed);
  }
  CpuSpeeds speeds;
  for (const char* name : {"cpu_capacity", "cpufreq/cpuinfo_max_freq", ""}) {
    uint64_t given[CPU_SETSIZE] = {};
    bool all_tell = true;
    for (unsigned cpu = 0; cpu < CPU_SETSIZE && all_tell; ++cpu) {
      if (CPU_ISSET(cpu, &allowed)) {
        given[cpu] = name[0] == '\0' ? 1 : read_number(folder, cpu, name);
        all_tell = given[cpu] > 0;
      }
    }
    if (all_tell) {
      speeds.scale(given);
      break;
    }
  }
  return speeds;
}

uint32_t CpuSpeeds::of_current() const {
  const int cpu = sched_getcpu();
  return cpu < 0 ? kFastest : of(unsigned(cpu));
}

uint32_t CpuSpeeds::of_nth(unsigned n) const {
  uint16_t sorted[CPU_SETSIZE];
  std::copy(speed_, speed_ + CPU_SETSIZE, sorted);
  std::sort(sorted, sorted + CPU_SETSIZE, std::greater<>());
  return sorted[std::clamp(n, 1u, std::max(1u, count_)) - 1];
}

unsigned CpuSpeeds::at_least(uint32_t speed) const {
  return unsigned(std::count_if(speed_, speed_ + CPU_SETSIZE, [&](uint16_t of) { return of > 0 && of >= speed; }));
}

void CpuSpeeds::keep_to_fastest(unsigned n) const {
  cpu_set_t set;
  CPU_ZERO(&set);
  const uint32_t least = of_nth(n);
  for (unsigned cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (speed_[cpu] > 0 && speed_[cpu] >= least) {
      CPU_SET(cpu, &set);
    }
  }
  sched_setaffinity(0, sizeof set, &set);
}

}  // namespace edgekit
