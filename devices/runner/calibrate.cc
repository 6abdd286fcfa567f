// Finds the numbers of threads that this model decodes and reads prompts fastest with on this machine.
#include <algorithm>
#include <cstdio>

#include "calibration.h"
#include "clock.h"
#include "failure.h"
#include "measurement.h"
#include "verbs.h"

namespace edgekit::runner {
namespace {

constexpr int kRounds = 7;
constexpr uint32_t kMostPassTokens = 256;
constexpr uint32_t kFirstPrompt = 16;

// A test of one kind: prefill (pp) or decode (tg).
class Trial {
 public:
  Trial(bool is_prefill, const Model& model, Session* session)
      : is_prefill_(is_prefill),
        most_(std::min(kMostPassTokens, session->context())),
        session_(session),
        tokens_(most_),
        logits_(model.info().vocab) {
    for (uint32_t i = 0; i < most_; ++i) {
      tokens_[i] = i % model.info().vocab;
    }
  }

  // Every number of threads gets its turn in every round, so that what else the machine does meets them alike.
  void run(const std::vector<uint32_t>& counts) {
    for (const uint32_t count : counts) {
      tried_.push_back({count, {}});
    }
    choose_length(counts.back());
    for (int round = 0; round < kRounds; ++round) {
      for (size_t i = 0; i < counts.size(); ++i) {
        Tried& of = tried_[round % 2 == 0 ? i : counts.size() - 1 - i];
        of.samples.push_back(take_sample([&] { return time(of.threads); }));
      }
    }
  }

  void warn_of_spread(Measurement* measurement) const {
    for (const Tried& of : tried_) {
      const std::string doubt = find_doubt(name(), of);
      if (!doubt.empty()) {
        measurement->warn(doubt);
      }
    }
  }

  const std::vector<Tried>& tried() const { return tried_; }
  uint32_t tokens() const { return length_; }
  std::string name() const { return (is_prefill_ ? "pp" : "tg") + std::to_string(length_); }

 private:
  // Doubles the length until one pass is long enough for a sample. The first also brings the weights into memory.
  void choose_length(uint32_t threads) {
    length_ = is_prefill_ ? std::min(kFirstPrompt, most_) : 1;
    time(threads);
    while (2 * length_ <= most_ && time(threads) < kSampleSeconds) {
      length_ *= 2;
    }
  }

  double time(uint32_t threads) {
    session_->set_threads(threads, threads);
    session_->reset(0);
    stop_if_interrupted();
    const double start = seconds_now();
    if (is_prefill_) {
      session_->forward(tokens_.data(), length_, logits_.data(), 1);
    } else {
      for (uint32_t i = 0; i < length_; ++i) {
        session_->forward(&tokens_[i], 1, logits_.data(), 1);
      }
    }
    return seconds_now() - start;
  }

  const bool is_prefill_;
  const uint32_t most_;
  uint32_t length_ = 1;
  Session* session_;
  std::vector<uint32_t> tokens_;
  std::vector<float> logits_;
  std::vector<Tried> tried_;
};

double rate(const Trial& trial, const Tried& of) { return trial.tokens() / nearest_rank(of.samples, 0.5); }

void print_trial(const Trial& trial, uint32_t chosen) {
  for (const Tried& of : trial.tried()) {
    std::printf("%-10s %7u %14.2f%s\n", trial.name().c_str(), of.threads, rate(trial, of),
                of.threads == chosen ? "  chosen" : "");
  }
}

void write_trial(const Trial& trial, uint32_t chosen, Json* json) {
  for (const Tried& of : trial.tried()) {
    json->open_object().member("test", trial.name()).member("threads", of.threads).member("depth", 0u);
    json->member("tokens", trial.tokens()).member("chosen", of.threads == chosen);
    json->list("samples", of.samples).close_object();
  }
}

}  // namespace

void calibrate(int count, char** words) {
  const Arguments arguments(count, words, {kJson});
  const Model model(arguments.file());
  if (read_machine().emulated) {
    throw Failure{kUsage, "an emulated machine cannot be calibrated: time has no meaning on it",
                  "calibrate on the board itself"};
  }
  const std::vector<uint32_t> counts = counts_to_try(CpuSpeeds::read());
  edgekit_session_options options{};
  options.context = std::min(model.info().context, kMostPassTokens);
  options.decode_threads = options.prefill_threads = counts.back();
  options.spin_microseconds = UINT32_MAX;
  options.keep_to_fast_cpus = 1;
  Session session(model, options);
  Measurement measurement(model, session);
  Trial prefill(true, model, &session);
  Trial decode(false, model, &session);
  prefill.run(counts);
  decode.run(counts);
  const Calibration chosen = {choose_count(decode.tried()), choose_count(prefill.tried())};
  save_calibration(model, chosen);
  session.set_threads(chosen.decode_threads, chosen.prefill_threads);
  measurement.finish();
  prefill.warn_of_spread(&measurement);
  decode.warn_of_spread(&measurement);
  const std::string json_path = arguments.text("--json");
  if (json_path.empty()) {
    measurement.print_warnings();
    std::printf("%-10s %7s %14s\n", "test", "threads", "tokens/s");
    print_trial(prefill, chosen.prefill_threads);
    print_trial(decode, chosen.decode_threads);
    return;
  }
  Json json;
  json.open_object();
  json.member("decode_threads", chosen.decode_threads).member("prefill_threads", chosen.prefill_threads);
  json.key("rows").open_list();
  write_trial(prefill, chosen.prefill_threads, &json);
  write_trial(decode, chosen.decode_threads, &json);
  json.close_list();
  measurement.write_device(&json);
  measurement.write_warnings(&json);
  json.close_object();
  write_text(json_path, json.text());
}

}  // namespace edgekit::runner
