#include "measurement.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <numeric>

#include "edgekit/cpu.h"

namespace edgekit::runner {
namespace {

constexpr size_t kSamplesForP99 = 100;
constexpr double kShortestRunSeconds = 1.0;
constexpr double kClockMoved = 0.1;  // a tenth of the clock

double mean(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

const char* name_of(ThreadsFrom from) {
  constexpr const char* kNames[] = {"asked", "calibrated", "plan"};
  return kNames[static_cast<size_t>(from)];
}

void write_reading(const char* name, const Reading& reading, Json* json) {
  json->key(name).open_object();
  json->list("clocks_hz", reading.clocks_hz);
  json->key("temperatures_celsius").open_object();
  for (const Temperature& temperature : reading.temperatures) {
    json->member(temperature.zone, temperature.celsius);
  }
  json->close_object().close_object();
}

}  // namespace

double nearest_rank(std::vector<double> samples, double share) {
  std::sort(samples.begin(), samples.end());
  const auto rank = static_cast<size_t>(std::ceil(share * static_cast<double>(samples.size())));
  return samples[std::max<size_t>(rank, 1) - 1];
}

Measurement::Measurement(const Model& model, const Session& session)
    : model_(model), session_(session), machine_(read_machine()), before_(read_clocks_and_temperatures()) {
  if (edgekit_program_fell_back(model_.program()) != 0) {
    const char* isa = std::getenv("EDGEKIT_ISA");
    const std::string lowered = isa == nullptr || *isa == '\0' ? "" : ", lowered by EDGEKIT_ISA=" + std::string(isa) + ",";
    warn("this CPU" + lowered + " does not run the planned kernels; slower ones took their place");
  }
  if (!session_.calibration_doubt().empty()) {
    warn(session_.calibration_doubt());
  }
}

void Measurement::finish() {
  memory_ = read_process_memory();
  after_ = read_clocks_and_temperatures();
  if (machine_.emulated) {
    warn("emulated: time has no meaning here");
  }
  if (after_.throttled_now || after_.throttle_events > before_.throttle_events) {
    warn("the CPU was throttled");
  }
  if (!before_.clocks_hz.empty() && before_.clocks_hz.size() == after_.clocks_hz.size() &&
      std::fabs(mean(after_.clocks_hz) / mean(before_.clocks_hz) - 1) > kClockMoved) {
    warn("the clock moved by more than a tenth between start and end");
  }
  if (!machine_.governor.empty() && machine_.governor != "performance") {
    warn("the frequency governor is '" + machine_.governor + "', not 'performance'");
  }
  if (std::max(session_.decode_threads(), session_.prefill_threads()) > machine_.cpus) {
    warn("more threads than CPUs");
  }
}

void Measurement::print_warnings() const {
  for (const std::string& warning : warnings_) {
    std::fprintf(stderr, "edgekit-run: warning: %s\n", warning.c_str());
  }
}

void Measurement::write_latency(const Latency& latency, Json* json) {
  const std::vector<double>& samples = latency.token_seconds;
  json->key("latency").open_object();
  json->member("load_seconds", latency.load_seconds);
  if (latency.ttft_seconds > 0) {
    json->member("ttft_seconds", latency.ttft_seconds);
  }
  if (latency.prefill_seconds > 0) {
    json->member("prefill_tokens_per_second",
                 static_cast<double>(latency.prefill_tokens) / latency.prefill_seconds);
  }
  if (!samples.empty()) {
    const double total = std::accumulate(samples.begin(), samples.end(), 0.0);
    json->member("decode_tokens_per_second", static_cast<double>(samples.size()) / total);
    json->key("token_seconds").open_object();
    json->member("p50", nearest_rank(samples, 0.50));
    json->member("p90", nearest_rank(samples, 0.90));
    json->member("p99", nearest_rank(samples, 0.99));
    json->close_object();
    if (samples.size() < kSamplesForP99) {
      warn("fewer samples than the 99th percentile needs: " + std::to_string(samples.size()));
    }
    if (total < kShortestRunSeconds) {
      warn("too short: less than a second of decoding");
    }
  }
  json->list("samples", samples);
  json->close_object();
}

void Measurement::write_memory(Json* json) const {
  const edgekit_memory memory = session_.memory();
  json->key("memory").open_object();
  json->member("weights_bytes", model_.info().weights_bytes);
  json->member("kv_format", name_of(session_.kv_format()));
  json->member("kv_bytes", memory.kv_bytes);
  json->member("arena_bytes", memory.arena_bytes);
  json->member("peak_rss_bytes", memory_.peak_rss_bytes);
  json->member("anonymous_bytes", memory_.anonymous_bytes);
  json->member("file_backed_bytes", memory_.file_backed_bytes);
  json->close_object();
}

void Measurement::write_device(Json* json) const {
  json->key("device").open_object();
  json->member("cpu", machine_.cpu);
  json->member("system", machine_.system);
  json->member("isa", edgekit_isa_name(edgekit_cpu_features()));
  write_kernels(json);
  json->member("cores", machine_.cpus);
  json->member("decode_threads", session_.decode_threads());
  json->member("prefill_threads", session_.prefill_threads());
  json->member("decode_threads_from", name_of(session_.decode_threads_from()));
  json->member("prefill_threads_from", name_of(session_.prefill_threads_from()));
  json->member("page_bytes", machine_.page_bytes);
  json->key("governor");
  machine_.governor.empty() ? json->null() : json->value(machine_.governor);
  write_reading("before", before_, json);
  write_reading("after", after_, json);
  json->member("throttled", after_.throttled_now || after_.throttle_events > before_.throttle_events);
  json->member("emulated", machine_.emulated);
  json->close_object();
}

void Measurement::write_kernels(Json* json) const { write_kernel_list(model_.program(), json); }

void Measurement::write_warnings(Json* json) const { json->list("warnings", warnings_); }

void write_kernel_list(const edgekit_program* program, Json* json) {
  size_t count = 0;
  const edgekit_kernel_use* uses = edgekit_program_kernels(program, &count);
  json->key("kernels").open_list();
  for (size_t i = 0; i < count; ++i) {
    json->open_object().member("planned", uses[i].planned).member("runs", uses[i].runs).close_object();
  }
  json->close_list();
}

}  // namespace edgekit::runner
