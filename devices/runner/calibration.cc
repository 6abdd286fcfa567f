#include "calibration.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <set>

#include "bench_rows.h"
#include "edgekit/cpu.h"
#include "failure.h"
#include "machine.h"
#include "measurement.h"
#include "program/crc32.h"

namespace edgekit::runner {
namespace {

constexpr char kHeading[] = "edgekit-calibration 1";
constexpr size_t kMostFileBytes = 4096;
constexpr size_t kMostNameBytes = 200;
constexpr double kWorthMoreThreads = 0.97;
constexpr double kMostSpread = 0.1;  // standard deviation of the rate, as a share of it; as in edgekit/measure.py

// What the first line may be, and the keys of the others.
constexpr const char* kKeys[] = {"cpu", "cpus", "isa", "model_bytes", "model_crc", "decode_threads", "prefill_threads"};

using Values = std::map<std::string, std::string>;

bool is_key(const std::string& word) {
  return std::any_of(std::begin(kKeys), std::end(kKeys), [&](const char* key) { return word == key; });
}

// The lines "key value" after the heading: every key once. Empty if the text is anything else.
Values parse_lines(const std::string& text) {
  Values values;
  size_t start = 0;
  for (size_t line = 0; start < text.size(); ++line) {
    const size_t end = text.find('\n', start);
    if (end == std::string::npos) {
      return {};
    }
    const std::string words = text.substr(start, end - start);
    start = end + 1;
    if (line == 0) {
      if (words != kHeading) {
        return {};
      }
      continue;
    }
    const size_t space = words.find(' ');
    const std::string key = words.substr(0, space);
    if (space == std::string::npos || !is_key(key) || !values.emplace(key, words.substr(space + 1)).second) {
      return {};
    }
  }
  return values.size() == std::size(kKeys) ? values : Values{};
}

// 0 unless the whole text is a number in [1, EDGEKIT_MOST_THREADS].
uint32_t parse_threads(const std::string& text) {
  const bool is_number = !text.empty() && text.size() <= 3 && text.find_first_not_of("0123456789") == std::string::npos;
  const unsigned long count = is_number ? std::strtoul(text.c_str(), nullptr, 10) : 0;
  return count <= EDGEKIT_MOST_THREADS ? uint32_t(count) : 0;
}

// One line, of a length that fits the file.
std::string as_value(std::string text) {
  for (char& character : text) {
    character = static_cast<unsigned char>(character) < 0x20 ? ' ' : character;
  }
  return text.substr(0, kMostNameBytes);
}

Values as_values(const CalibratedFor& here) {
  return {{"cpu", as_value(here.cpu)},
          {"cpus", as_value(here.cpus)},
          {"isa", here.isa},
          {"model_bytes", std::to_string(here.model_bytes)},
          {"model_crc", std::to_string(here.model_crc)}};
}

[[noreturn]] void fail_to_write(const std::string& path, int error) {
  throw Failure{kUsage, "'" + path + "' cannot be written: " + std::strerror(error),
                "the calibration is kept beside the model: is there a place to write?"};
}

void sync_folder_of(const std::string& path) {
  const size_t slash = path.rfind('/');
  const std::string folder = slash == std::string::npos ? "." : path.substr(0, slash + 1);
  const int opened = open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (opened >= 0) {
    fsync(opened);
    close(opened);
  }
}

}  // namespace

CalibratedFor calibrated_for(const Model& model) {
  const Machine machine = read_machine();
  size_t count = 0;
  const edgekit_section_info* sections = edgekit_program_sections(model.program(), &count);
  std::vector<uint32_t> checksums;
  for (size_t i = 0; i < count; ++i) {
    checksums.push_back(sections[i].crc);
  }
  CalibratedFor here;
  here.cpu = machine.cpu;
  here.cpus = machine.present_cpus + ", " + std::to_string(machine.cpus) + " usable";
  here.isa = edgekit_isa_name(edgekit_cpu_features());
  here.model_bytes = model.info().file_bytes;
  here.model_crc = crc32(reinterpret_cast<const uint8_t*>(checksums.data()), checksums.size() * sizeof(uint32_t));
  return here;
}

std::string calibration_path(const std::string& model_path) { return model_path + ".calibration"; }

std::string format_calibration(const CalibratedFor& here, const Calibration& calibration) {
  Values values = as_values(here);
  values["decode_threads"] = std::to_string(calibration.decode_threads);
  values["prefill_threads"] = std::to_string(calibration.prefill_threads);
  std::string text = std::string(kHeading) + "\n";
  for (const char* key : kKeys) {
    text += std::string(key) + " " + values[key] + "\n";
  }
  return text;
}

Calibration parse_calibration(const std::string& text, const CalibratedFor& here, std::string* doubt) {
  Values values = parse_lines(text);
  const Calibration found = {parse_threads(values["decode_threads"]), parse_threads(values["prefill_threads"])};
  if (found.decode_threads == 0 || found.prefill_threads == 0) {
    *doubt = "the calibration beside the model is not one that this edgekit writes, and was ignored";
    return {};
  }
  for (const auto& [key, value] : as_values(here)) {
    if (values[key] != value) {
      const char* what = key == "isa" ? "ISA" : key.compare(0, 5, "model") == 0 ? "model" : "machine";
      *doubt = std::string("the calibration beside the model is for another ") + what + ", and was ignored";
      return {};
    }
  }
  return found;
}

Calibration find_calibration(const Model& model, std::string* doubt) {
  const int file = open(calibration_path(model.path()).c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file < 0) {
    return {};
  }
  std::string text(kMostFileBytes + 1, '\0');
  struct stat status {};
  const bool is_plain = fstat(file, &status) == 0 && S_ISREG(status.st_mode);
  const ssize_t got = is_plain ? read(file, text.data(), text.size()) : 0;
  close(file);
  // A file that is too long, or cannot be read, is as good as an empty one: neither has the heading.
  text.resize(got < 0 || static_cast<size_t>(got) > kMostFileBytes ? 0 : static_cast<size_t>(got));
  return parse_calibration(text, calibrated_for(model), doubt);
}

void save_calibration(const Model& model, const Calibration& calibration) {
  const std::string path = calibration_path(model.path());
  const std::string text = format_calibration(calibrated_for(model), calibration);
  std::string draft = path + ".XXXXXX";
  const int file = mkstemp(draft.data());
  if (file < 0) {
    fail_to_write(path, errno);
  }
  const bool written = write(file, text.data(), text.size()) == static_cast<ssize_t>(text.size()) &&
                       fchmod(file, 0644) == 0 && fsync(file) == 0;
  const int error = errno;
  close(file);
  if (!written || std::rename(draft.c_str(), path.c_str()) != 0) {
    const int reason = written ? errno : error;
    unlink(draft.c_str());
    fail_to_write(path, reason);
  }
  sync_folder_of(path);
}

std::vector<uint32_t> counts_to_try(const CpuSpeeds& speeds) {
  const uint32_t most = std::clamp(speeds.count(), 1u, EDGEKIT_MOST_THREADS);
  std::set<uint32_t> counts = {1, 2, 3, most};
  for (uint32_t count = 4; count < most; count *= 2) {
    counts.insert(count);
  }
  for (uint32_t n = 1; n <= most; ++n) {
    counts.insert(speeds.at_least(speeds.of_nth(n)));
  }
  counts.erase(counts.upper_bound(most), counts.end());
  return {counts.begin(), counts.end()};
}

double take_sample(const std::function<double()>& pass) {
  double seconds = 0;
  int passes = 0;
  for (; seconds < kSampleSeconds; ++passes) {
    seconds += pass();
  }
  return seconds / passes;
}

std::string find_doubt(const std::string& test, const Tried& of) {
  BenchRow row;
  row.tokens = 1;
  row.samples = of.samples;
  const double spread = row.spread_of_rate() / row.mean_rate();
  if (spread <= kMostSpread) {
    return {};
  }
  return test + " with " + std::to_string(of.threads) + (of.threads > 1 ? " threads" : " thread") +
         ": samples spread by " + std::to_string(std::lround(100 * spread)) + "%";
}

uint32_t choose_count(const std::vector<Tried>& tried) {
  const auto median = [](const Tried& of) { return nearest_rank(of.samples, 0.5); };
  double best = median(tried.front());
  for (const Tried& of : tried) {
    best = std::min(best, median(of));
  }
  const auto chosen =
      std::find_if(tried.begin(), tried.end(), [&](const Tried& of) { return best >= kWorthMoreThreads * median(of); });
  return chosen->threads;
}

}  // namespace edgekit::runner
