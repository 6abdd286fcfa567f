// The parts of a measurement (design.md, section 6) that every verb writes, and the one list of doubts.
#pragma once

#include <string>
#include <vector>

#include "json.h"
#include "machine.h"
#include "model.h"

namespace edgekit::runner {

// What was timed in a run. Empty samples are left out of the report.
struct Latency {
  double load_seconds = 0;
  double ttft_seconds = 0;  // from the prompt's tokens to the first token of the answer
  size_t prefill_tokens = 0;
  double prefill_seconds = 0;
  std::vector<double> token_seconds;  // of each token after the first
};

// Watches the machine from its making on, and writes what it saw.
class Measurement {
 public:
  Measurement(const Model& model, const Session& session);

  // A doubt found by a verb itself.
  void warn(const std::string& doubt) { warnings_.push_back(doubt); }

  // Call once, when the work is done: reads clocks, temperatures and memory again.
  void finish();

  // What was found so far, on stderr. Doubts about numbers come with finish().
  void print_warnings() const;

  void write_latency(const Latency& latency, Json* json);
  void write_memory(Json* json) const;
  void write_device(Json* json) const;
  void write_kernels(Json* json) const;
  void write_warnings(Json* json) const;

  const Machine& machine() const { return machine_; }

 private:
  const Model& model_;
  const Session& session_;
  Machine machine_;
  Reading before_;
  Reading after_;
  ProcessMemory memory_{};
  std::vector<std::string> warnings_;
};

// The value that `share` of the samples do not exceed: the nearest rank. `samples` must not be empty.
double nearest_rank(std::vector<double> samples, double share);

void write_kernel_list(const edgekit_program* program, Json* json);

}  // namespace edgekit::runner
