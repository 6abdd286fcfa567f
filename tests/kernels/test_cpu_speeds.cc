// Speeds of CPUs: what the system tells, from the fastest to the slowest.
#include <sys/stat.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>

#include "check.h"
#include "cpu/speeds.h"

namespace edgekit::testing {
namespace {

// A folder like /sys/devices/system/cpu, removed at the end.
class Folder {
 public:
  Folder() {
    if (mkdtemp(path_.data()) == nullptr) std::abort();
  }
  ~Folder() { std::filesystem::remove_all(path_); }

  // A file for each CPU that this process may run on; the i-th of them holds texts[i % count].
  void tell(const std::string& name, std::initializer_list<const char*> texts) const {
    cpu_set_t allowed;
    CPU_ZERO(&allowed);
    sched_getaffinity(0, sizeof allowed, &allowed);
    size_t i = 0;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
      if (!CPU_ISSET(cpu, &allowed)) continue;
      const std::filesystem::path file = path_ + "/cpu" + std::to_string(cpu) + "/" + name;
      std::filesystem::create_directories(file.parent_path());
      std::FILE* stream = std::fopen(file.c_str(), "w");
      std::fputs(texts.begin()[i++ % texts.size()], stream);
      std::fclose(stream);
    }
  }

  const char* path() const { return path_.c_str(); }

 private:
  std::string path_ = (std::getenv("TMPDIR") != nullptr ? std::string(std::getenv("TMPDIR")) : "/tmp") + "/cpus-XXXXXX";
};

unsigned count_allowed() { return CpuSpeeds::read().count(); }

TEST(speeds_are_relative_to_the_fastest) {
  const CpuSpeeds speeds = {400, 400, 400, 400, 760, 760, 760, 1520};
  CHECK(speeds.count() == 8 && !speeds.are_equal());
  CHECK(speeds.of(7) == 1024 && speeds.of(4) == 512 && speeds.of(0) == 269);
  CHECK(speeds.of(8) == 1024 && speeds.of(1u << 30) == 1024);
  CHECK(speeds.of_nth(1) == 1024 && speeds.of_nth(2) == 512 && speeds.of_nth(4) == 512 && speeds.of_nth(5) == 269);
  CHECK(speeds.of_nth(0) == 1024 && speeds.of_nth(100) == 269);
  CHECK(speeds.at_least(1024) == 1 && speeds.at_least(512) == 4 && speeds.at_least(1) == 8);
}

TEST(equal_cpus_are_equal) {
  const CpuSpeeds speeds = {2400000, 2400000};
  CHECK(speeds.are_equal() && speeds.of(0) == 1024 && speeds.of(1) == 1024 && speeds.of_nth(2) == 1024);
}

TEST(speeds_of_any_size_stay_in_bounds) {
  const CpuSpeeds speeds = {UINT64_MAX, 1, UINT64_MAX / 2};
  CHECK(speeds.of(0) == 1024 && speeds.of(1) == 1);
  CHECK(speeds.of(2) >= 1 && speeds.of(2) <= 1024);
}

TEST(capacities_are_read_before_clocks) {
  const Folder folder;
  folder.tell("cpu_capacity", {"1024\n", "512\n"});
  folder.tell("cpufreq/cpuinfo_max_freq", {"1000\n"});
  const CpuSpeeds speeds = CpuSpeeds::read(folder.path());
  CHECK(speeds.count() == count_allowed());
  CHECK(speeds.of_nth(1) == 1024);
  CHECK(speeds.count() < 2 || (!speeds.are_equal() && speeds.of_nth(speeds.count()) == 512));
}

TEST(clocks_are_read_where_a_capacity_is_missing_or_no_number) {
  for (const char* text : {"", "-5\n", "many\n", "0\n"}) {
    const Folder folder;
    folder.tell("cpu_capacity", {text, "512\n"});
    folder.tell("cpufreq/cpuinfo_max_freq", {"2000000\n", "500000\n"});
    const CpuSpeeds speeds = CpuSpeeds::read(folder.path());
    CHECK_THAT(speeds.count() < 2 || speeds.of_nth(speeds.count()) == 256, "'%s'", text);
  }
}

TEST(where_nothing_is_told_all_are_equal) {
  const Folder folder;
  const CpuSpeeds speeds = CpuSpeeds::read(folder.path());
  CHECK(speeds.count() == count_allowed() && speeds.count() > 0 && speeds.are_equal());
}

TEST(a_thread_is_kept_on_the_fastest) {
  const CpuSpeeds before = CpuSpeeds::read();
  const Folder folder;
  folder.tell("cpu_capacity", {"1024\n", "512\n"});
  CpuSpeeds::read(folder.path()).keep_to_fastest(1);
  CHECK(count_allowed() == (before.count() + 1) / 2);
  before.keep_to_fastest(CPU_SETSIZE);
  CHECK(count_allowed() == before.count());
}

}  // namespace
}  // namespace edgekit::testing

EDGEKIT_TEST_MAIN
