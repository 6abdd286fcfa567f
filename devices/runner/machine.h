// What the machine says about itself: processor, clocks, temperatures, memory. From /proc and /sys; what is not there
// is left out.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace edgekit::runner {

struct Temperature {
  std::string zone;
  double celsius;
};

// What may change during a run.
struct Reading {
  std::vector<double> clocks_hz;  // of each CPU
  std::vector<Temperature> temperatures;
  uint64_t throttle_events = 0;  // of all CPUs since boot, where the kernel counts them
  bool throttled_now = false;    // where the firmware says so (Raspberry Pi)
};

struct Machine {
  std::string cpu;
  std::string system;  // kernel name, release and machine
  std::string governor;
  uint32_t cpus;             // that this process may run on
  std::string present_cpus;  // all there are, as the system writes it: "0-3"
  uint64_t page_bytes;
  bool emulated;
};

struct ProcessMemory {
  uint64_t peak_rss_bytes;
  uint64_t anonymous_bytes;
  uint64_t file_backed_bytes;
};

Machine read_machine();
Reading read_clocks_and_temperatures();
ProcessMemory read_process_memory();

// The ceiling of cpu/read_ceiling.h for a block larger than any cache; 0 if there is no memory for one.
double measure_read_ceiling(uint32_t threads);

}  // namespace edgekit::runner
