// How many threads a model runs best with on this machine: found once by `calibrate`, kept in a file beside the model.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "cpu/speeds.h"
#include "model.h"

namespace edgekit::runner {

struct Calibration {
  uint32_t decode_threads = 0;
  uint32_t prefill_threads = 0;
};

// What a calibration holds for, and for nothing else.
struct CalibratedFor {
  std::string cpu;
  std::string cpus;  // of the machine, and how many this process may run on: "0-3, 4 usable"
  std::string isa;
  uint64_t model_bytes = 0;
  uint32_t model_crc = 0;  // of the checksums of the file's sections
};

// This machine and a model.
CalibratedFor calibrated_for(const Model& model);

std::string calibration_path(const std::string& model_path);

// The content of a calibration file, and what such a content says. `doubt` is why it says nothing to `here`.
std::string format_calibration(const CalibratedFor& here, const Calibration& calibration);
Calibration parse_calibration(const std::string& text, const CalibratedFor& here, std::string* doubt);

// The calibration beside the model; its counts are 0 if there is none, or none that holds here: `doubt` then says why.
Calibration find_calibration(const Model& model, std::string* doubt);

// Brings the file to the disk under another name before it gets its own. Throws Failure.
void save_calibration(const Model& model, const Calibration& calibration);

// Numbers of threads worth trying, rising: 1 to 4, powers of two, all CPUs as fast as each kind of CPU, and all.
std::vector<uint32_t> counts_to_try(const CpuSpeeds& speeds);

// A test is repeated for at least so long to be one sample.
constexpr double kSampleSeconds = 0.1;

struct Tried {
  uint32_t threads;
  std::vector<double> samples;  // seconds for the same work
};

// Seconds of one pass: the mean of as many as take kSampleSeconds. `pass` returns the seconds it took.
double take_sample(const std::function<double()>& pass);

// What is doubtful about the samples of a number of threads, as `bench` says it of a row; empty if nothing is.
std::string find_doubt(const std::string& test, const Tried& of);

// The fewest threads whose median is within 3 % of the best. `tried` rises and is not empty.
uint32_t choose_count(const std::vector<Tried>& tried);

}  // namespace edgekit::runner
