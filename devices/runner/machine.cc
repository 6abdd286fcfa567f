#include "machine.h"

#include <sched.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "cpu/read_ceiling.h"

namespace edgekit::runner {
namespace {

constexpr size_t kMostFileBytes = 1 << 20;
constexpr uint64_t kReadBytes = uint64_t(256) << 20;
constexpr size_t kReadRounds = 8;

std::string read_file(const std::string& path) {
  std::FILE* file = std::fopen(path.c_str(), "rb");
  if (file == nullptr) {
    return "";
  }
  std::string text;
  char part[4096];
  for (size_t got = 1; got > 0 && text.size() < kMostFileBytes;) {
    got = std::fread(part, 1, sizeof part, file);
    text.append(part, got);
  }
  std::fclose(file);
  while (!text.empty() && (text.back() == '\n' || text.back() == '\0')) {
    text.pop_back();
  }
  return text;
}

// The value of the first line "name : value".
std::string find_value(const std::string& text, const std::string& name) {
  for (size_t start = 0; start < text.size();) {
    const size_t end = std::min(text.find('\n', start), text.size());
    const std::string line = text.substr(start, end - start);
    const size_t colon = line.find(':');
    if (colon != std::string::npos && line.compare(0, name.size(), name) == 0 &&
        line.find_first_not_of(" \t", name.size()) == colon) {
      const size_t from = line.find_first_not_of(" \t", colon + 1);
      return from == std::string::npos ? "" : line.substr(from);
    }
    start = end + 1;
  }
  return "";
}

uint64_t find_kilobytes(const std::string& text, const std::string& name) {
  return std::strtoull(find_value(text, name).c_str(), nullptr, 10) * 1024;
}

std::string cpu_folder(uint32_t cpu) { return "/sys/devices/system/cpu/cpu" + std::to_string(cpu); }

uint32_t count_configured_cpus() { return static_cast<uint32_t>(std::max(1L, sysconf(_SC_NPROCESSORS_CONF))); }

std::string name_cpu(const std::string& cpuinfo) {
  for (const char* key : {"model name", "Model", "Hardware"}) {
    const std::string name = find_value(cpuinfo, key);
    if (!name.empty()) {
      return name;
    }
  }
  const std::string board = read_file("/proc/device-tree/model");
  return board.empty() ? find_value(cpuinfo, "CPU part") : board;
}

// User-mode QEMU keeps its own name as the process's, and shows the host's processor, which may be of another kind.
bool is_emulated(const std::string& cpuinfo) {
  if (read_file("/proc/self/comm").compare(0, 5, "qemu-") == 0) {
    return true;
  }
#if defined(__aarch64__)
  return !find_value(cpuinfo, "vendor_id").empty();
#else
  return !find_value(cpuinfo, "CPU implementer").empty();
#endif
}

}  // namespace

Machine read_machine() {
  Machine machine;
  const std::string cpuinfo = read_file("/proc/cpuinfo");
  machine.cpu = name_cpu(cpuinfo);
  utsname names{};
  uname(&names);
  machine.system = std::string(names.sysname) + " " + names.release + " " + names.machine;
  machine.governor = read_file(cpu_folder(0) + "/cpufreq/scaling_governor");
  cpu_set_t set;
  CPU_ZERO(&set);
  const bool known = sched_getaffinity(0, sizeof set, &set) == 0;
  machine.cpus = known ? static_cast<uint32_t>(CPU_COUNT(&set)) : count_configured_cpus();
  machine.present_cpus = read_file("/sys/devices/system/cpu/present");
  machine.page_bytes = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  machine.emulated = is_emulated(cpuinfo);
  return machine;
}

Reading read_clocks_and_temperatures() {
  Reading reading;
  const uint32_t cpus = count_configured_cpus();
  for (uint32_t cpu = 0; cpu < cpus; ++cpu) {
    const std::string khz = read_file(cpu_folder(cpu) + "/cpufreq/scaling_cur_freq");
    if (!khz.empty()) {
      reading.clocks_hz.push_back(std::strtod(khz.c_str(), nullptr) * 1e3);
    }
    const std::string events = read_file(cpu_folder(cpu) + "/thermal_throttle/core_throttle_count");
    reading.throttle_events += std::strtoull(events.c_str(), nullptr, 10);
  }
  for (int zone = 0; zone < 64; ++zone) {
    const std::string folder = "/sys/class/thermal/thermal_zone" + std::to_string(zone);
    const std::string millidegrees = read_file(folder + "/temp");
    if (!millidegrees.empty()) {
      reading.temperatures.push_back({read_file(folder + "/type"), std::strtod(millidegrees.c_str(), nullptr) / 1e3});
    }
  }
  // Raspberry Pi firmware: bits 0 to 3 are under-voltage, clock capped, throttled, soft temperature limit, right now.
  const std::string flags = read_file("/sys/devices/platform/soc/soc:firmware/get_throttled");
  reading.throttled_now = (std::strtoull(flags.c_str(), nullptr, 16) & 0xf) != 0;
  return reading;
}

ProcessMemory read_process_memory() {
  const std::string status = read_file("/proc/self/status");
  return {find_kilobytes(status, "VmHWM"), find_kilobytes(status, "RssAnon"), find_kilobytes(status, "RssFile")};
}

double measure_read_ceiling(uint32_t threads) {
  // A quarter of what is free at most: the buffer must not push the model out of memory.
  const uint64_t available = find_kilobytes(read_file("/proc/meminfo"), "MemAvailable");
  const uint64_t bytes = std::min(kReadBytes, available / 4 / 4096 * 4096);
  return edgekit::measure_read_ceiling(threads, bytes, kReadRounds);
}

}  // namespace edgekit::runner
