// Compares the model on this machine with the float reference recorded in the probe (program/probe_format.h).
#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>

#include "clock.h"
#include "failure.h"
#include "measurement.h"
#include "ops/sampling.h"
#include "program/probe_format.h"
#include "verbs.h"

namespace edgekit::runner {
namespace {

constexpr size_t kMostProbeBytes = 256 << 20;
constexpr size_t kRowsAtOnce = 32;
constexpr double kLeastShare = 1e-12;  // of a distribution, so that its logarithm exists

[[noreturn]] void refuse_probe(const char* why) {
  throw Failure{kDamaged, std::string("the probe is damaged: ") + why, "compile the model again"};
}

// Reads little-endian words one after the other, and never past the end.
class Reader {
 public:
  Reader(const uint8_t* data, size_t bytes) : data_(data), left_(bytes) {}

  template <typename T>
  T take() {
    T value;
    std::memcpy(&value, skip(sizeof value), sizeof value);
    return value;
  }

  template <typename T>
  const T* take_array(size_t count) {
    if (count > left_ / sizeof(T)) {
      refuse_probe("it is too short");
    }
    return reinterpret_cast<const T*>(skip(count * sizeof(T)));
  }

 private:
  const uint8_t* skip(size_t bytes) {
    if (bytes > left_) {
      refuse_probe("it is too short");
    }
    const uint8_t* at = data_;
    data_ += bytes;
    left_ -= bytes;
    return at;
  }

  const uint8_t* data_;
  size_t left_;
};

struct Coherence {
  uint64_t tokens = 0;
  double nll = 0;
  uint64_t same_top = 0;
  std::vector<double> divergences;
  double rep4 = 0;
};

class Probe {
 public:
  Probe(const Model& model, Session* session, const uint8_t* data, size_t bytes)
      : session_(session),
        ops_(ops_here()),
        vocab_(model.info().vocab),
        reader_(data, bytes),
        logits_(kRowsAtOnce * vocab_),
        maxima_(vocab_ / ops::kStrip + 1) {
    header_ = reader_.take<format::ProbeHeader>();
    if (header_.version != format::kProbeVersion) {
      throw Failure{kUnsupported, "the probe has version " + std::to_string(header_.version),
                    "this program reads version " + std::to_string(format::kProbeVersion)};
    }
    if (header_.top == 0 || header_.top > vocab_ || header_.scored == 0) {
      refuse_probe("its header contradicts the model");
    }
  }

  Coherence run() {
    for (uint32_t i = 0; i < header_.sequences; ++i) {
      score_sequence();
    }
    if (found_.tokens != header_.scored) {
      refuse_probe("it does not hold as many tokens as it says");
    }
    double repeated = 0;
    uint32_t counted = 0;
    for (uint32_t i = 0; i < header_.continuations; ++i) {
      const std::vector<uint32_t> tokens = continue_prompt();
      if (tokens.size() >= 4) {
        repeated += share_of_repeated(tokens);
        ++counted;
      }
    }
    found_.rep4 = counted > 0 ? repeated / counted : 0;
    return found_;
  }

  const format::ProbeHeader& header() const { return header_; }
  const Latency& latency() const { return latency_; }

 private:
  const uint32_t* take_ids(uint32_t count) {
    const uint32_t* ids = reader_.take_array<uint32_t>(count);
    const bool all_known = std::all_of(ids, ids + count, [&](uint32_t id) { return id < vocab_; });
    if (count == 0 || count > session_->context() || !all_known) {
      refuse_probe("a sequence does not fit the model");
    }
    return ids;
  }

  void score_sequence() {
    const auto count = reader_.take<uint32_t>();
    const auto first = reader_.take<uint32_t>();
    const uint32_t* ids = take_ids(count);
    if (first == 0 || first > count) {
      refuse_probe("a sequence scores tokens that it does not have");
    }
    session_->reset(0);
    // Row p - 1 predicts token p; the last token's own row is not needed.
    for (uint32_t done = 0; done + 1 < count;) {
      stop_if_interrupted();
      const auto rows = static_cast<uint32_t>(std::min<size_t>(kRowsAtOnce, count - 1 - done));
      const double start = seconds_now();
      session_->forward(ids + done, rows, logits_.data(), rows);
      latency_.prefill_seconds += seconds_now() - start;
      latency_.prefill_tokens += rows;
      for (uint32_t row = 0; row < rows; ++row) {
        if (done + row + 1 >= first) {
          score_position(ids[done + row + 1], &logits_[size_t(row) * vocab_]);
        }
      }
      done += rows;
    }
  }

  // Divergence over the reference's likeliest tokens and one bucket for all others, in nats.
  void score_position(uint32_t token, const float* logits) {
    reader_.take<float>();  // what the reference gave the true token: summed up in the header
    const uint32_t* ids = reader_.take_array<uint32_t>(header_.top);
    const float* reference = reader_.take_array<float>(header_.top);
    const uint32_t likeliest = ops::find_largest(ops_, vocab_, logits, maxima_.data());
    const double shift = logits[likeliest];
    const double normalizer = shift + std::log(ops_.exponentials(vocab_, logits, logits[likeliest], 1.0f, nullptr));
    double divergence = 0;
    double rest = 1;
    double reference_rest = 1;
    for (uint32_t i = 0; i < header_.top; ++i) {
      if (ids[i] >= vocab_) {
        refuse_probe("it names a token that the model does not have");
      }
      const double logp = logits[ids[i]] - normalizer;
      const double share = std::exp(static_cast<double>(reference[i]));
      divergence += share * (reference[i] - logp);
      reference_rest -= share;
      rest -= std::exp(logp);
    }
    if (header_.top < vocab_ && reference_rest > kLeastShare) {
      divergence += reference_rest * std::log(reference_rest / std::max(rest, kLeastShare));
    }
    found_.divergences.push_back(divergence);
    found_.nll -= logits[token] - normalizer;
    found_.same_top += likeliest == ids[0] ? 1 : 0;
    ++found_.tokens;
  }

  // Greedily, past any token that ends a text, as the reference did.
  std::vector<uint32_t> continue_prompt() {
    const auto count = reader_.take<uint32_t>();
    const uint32_t* ids = take_ids(count);
    std::vector<uint32_t> made;
    session_->reset(0);
    session_->forward(ids, count, logits_.data(), 1);
    while (made.size() < header_.continuation_tokens) {
      made.push_back(ops::find_largest(ops_, vocab_, logits_.data(), maxima_.data()));
      if (made.size() == header_.continuation_tokens || session_->position() == session_->context()) {
        break;
      }
      stop_if_interrupted();
      const double start = seconds_now();
      session_->forward(&made.back(), 1, logits_.data(), 1);
      latency_.token_seconds.push_back(seconds_now() - start);
    }
    return made;
  }

  static double share_of_repeated(const std::vector<uint32_t>& tokens) {
    std::set<std::vector<uint32_t>> unique;
    for (size_t i = 0; i + 4 <= tokens.size(); ++i) {
      unique.insert({tokens.begin() + static_cast<long>(i), tokens.begin() + static_cast<long>(i) + 4});
    }
    return 1 - static_cast<double>(unique.size()) / static_cast<double>(tokens.size() - 3);
  }

  Session* session_;
  const ops::Ops& ops_;
  size_t vocab_;
  Reader reader_;
  std::vector<float> logits_;
  std::vector<float> maxima_;
  format::ProbeHeader header_;
  Coherence found_;
  Latency latency_;
};

// design.md, section 6.
const char* judge(double perplexity, double reference_perplexity, double kld_mean, double same_top, double rep4,
                  double reference_rep4) {
  const bool are_numbers = std::isfinite(perplexity) && std::isfinite(kld_mean);
  if (!are_numbers || kld_mean > 2 || same_top < 0.40) {
    return "collapsed";
  }
  const bool is_close = kld_mean < 0.5 && same_top >= 0.70;
  const bool is_calm = rep4 <= 1.5 * reference_rep4 && perplexity < 2 * reference_perplexity;
  return is_close && is_calm ? "coherent" : "degraded";
}

void write_coherence(const Coherence& found, const format::ProbeHeader& header, Json* json) {
  const auto tokens = static_cast<double>(found.tokens);
  const double perplexity = std::exp(found.nll / tokens);
  const double reference_perplexity = std::exp(header.reference_nll_sum / static_cast<double>(header.scored));
  double sum = 0;
  for (const double divergence : found.divergences) {
    sum += divergence;
  }
  const double same_top = static_cast<double>(found.same_top) / tokens;
  json->key("coherence").open_object();
  json->member("tokens", found.tokens).member("perplexity", perplexity);
  json->member("reference_perplexity", reference_perplexity).member("kld_mean", sum / tokens);
  json->member("kld_p99", nearest_rank(found.divergences, 0.99)).member("same_top", same_top);
  json->member("rep4", found.rep4).member("reference_rep4", double(header.reference_rep4));
  json->member("verdict", judge(perplexity, reference_perplexity, sum / tokens, same_top, found.rep4,
                                double(header.reference_rep4)));
  json->close_object();
}

}  // namespace

void probe(int count, char** words) {
  const Arguments arguments(count, words, {{"--probe"}, kThreads, kPrefillThreads, kContext, kKv, kJson});
  const Model model(arguments.file());
  std::string given;
  const uint8_t* data = model.info().probe;
  size_t bytes = model.info().probe_bytes;
  if (arguments.has("--probe")) {
    given = read_whole(arguments.text("--probe"), kMostProbeBytes);
    data = reinterpret_cast<const uint8_t*>(given.data());
    bytes = given.size();
  }
  if (data == nullptr) {
    throw Failure{kUsage, "this model carries no probe", "give one with --probe FILE"};
  }
  Session session(model, read_session_options(arguments, model));
  Measurement measurement(model, session);
  Probe probe(model, &session, data, bytes);
  const Coherence found = probe.run();
  measurement.finish();
  Json json;
  json.open_object();
  write_coherence(found, probe.header(), &json);
  Latency latency = probe.latency();
  latency.load_seconds = model.load_seconds() + session.create_seconds();
  measurement.write_latency(latency, &json);
  measurement.write_memory(&json);
  measurement.write_device(&json);
  measurement.write_kernels(&json);
  measurement.write_warnings(&json);
  json.close_object();
  write_text(arguments.text("--json", "-"), json.text());
}

}  // namespace edgekit::runner
