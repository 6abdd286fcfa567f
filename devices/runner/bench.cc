// Times prefill and decode on random tokens: rows pp<n> and tg<n>, each run after one that is not counted.
#include <algorithm>
#include <cmath>

#include "clock.h"
#include "failure.h"
#include "measurement.h"
#include "verbs.h"

namespace edgekit::runner {
namespace {

constexpr uint32_t kMostThreads = 256;
constexpr uint32_t kMostRuns = 1000;
constexpr uint64_t kSeed = 1;

struct Row {
  std::string test;
  uint32_t threads;
  uint32_t depth;
  uint32_t tokens;
  std::vector<double> samples;  // seconds
};

// SplitMix64, as in sampling: which tokens are used does not change the time, but it should not change at all.
std::vector<uint32_t> random_tokens(size_t count, uint32_t vocab) {
  uint64_t state = kSeed;
  std::vector<uint32_t> tokens(count);
  for (uint32_t& token : tokens) {
    state += 0x9e3779b97f4a7c15u;
    uint64_t z = (state ^ (state >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    token = static_cast<uint32_t>((z ^ (z >> 31)) % vocab);
  }
  return tokens;
}

class Bench {
 public:
  Bench(const Model& model, Session* session, const std::vector<uint32_t>& tokens)
      : session_(session), tokens_(tokens), logits_(model.info().vocab) {}

  Row run(bool is_prefill, uint32_t count, uint32_t depth, uint32_t threads, uint32_t runs) {
    Row row{(is_prefill ? "pp" : "tg") + std::to_string(count), threads, depth, count, {}};
    session_->set_threads(threads, threads);
    session_->reset(0);
    if (depth > 0) {
      session_->forward(tokens_.data(), depth, nullptr, 0);
    }
    for (uint32_t i = 0; i <= runs; ++i) {
      session_->reset(depth);
      const double start = seconds_now();
      is_prefill ? prefill(count) : decode(count);
      if (i > 0) {
        row.samples.push_back(seconds_now() - start);
      }
    }
    return row;
  }

 private:
  void prefill(uint32_t count) {
    stop_if_interrupted();
    session_->forward(tokens_.data(), count, logits_.data(), 1);
  }

  void decode(uint32_t count) {
    for (uint32_t i = 0; i < count; ++i) {
      stop_if_interrupted();
      session_->forward(&tokens_[i], 1, logits_.data(), 1);
    }
  }

  Session* session_;
  const std::vector<uint32_t>& tokens_;
  std::vector<float> logits_;
};

double mean_rate(const Row& row) {
  double sum = 0;
  for (const double seconds : row.samples) {
    sum += row.tokens / seconds;
  }
  return sum / static_cast<double>(row.samples.size());
}

double spread_of_rate(const Row& row) {
  const double mean = mean_rate(row);
  double squares = 0;
  for (const double seconds : row.samples) {
    squares += (row.tokens / seconds - mean) * (row.tokens / seconds - mean);
  }
  return row.samples.size() > 1 ? std::sqrt(squares / static_cast<double>(row.samples.size() - 1)) : 0;
}

void print_table(const std::vector<Row>& rows) {
  std::printf("%-10s %7s %7s %14s %10s\n", "test", "threads", "depth", "tokens/s", "+-");
  for (const Row& row : rows) {
    std::printf("%-10s %7u %7u %14.2f %10.2f\n", row.test.c_str(), row.threads, row.depth, mean_rate(row),
                spread_of_rate(row));
  }
}

const Row* fastest_decode(const std::vector<Row>& rows) {
  const Row* best = nullptr;
  for (const Row& row : rows) {
    if (row.test[0] == 't' && (best == nullptr || mean_rate(row) > mean_rate(*best))) {
      best = &row;
    }
  }
  return best;
}

// The read ceiling of each number of threads, and how near decoding comes to it.
void write_bandwidth(const Model& model, const std::vector<Row>& rows, const std::vector<uint32_t>& threads,
                     bool emulated, Json* json) {
  const Row* decode = fastest_decode(rows);
  const auto bytes_per_token = static_cast<double>(model.info().bytes_per_token);
  double ceiling_of_decode = 0;
  json->key("bandwidth").open_object();
  json->member("bytes_per_token", model.info().bytes_per_token);
  if (!emulated) {
    json->key("read_ceiling_bytes_per_second").open_object();
    for (const uint32_t count : threads) {
      const double ceiling = measure_read_ceiling(count);
      json->member(std::to_string(count), ceiling);
      ceiling_of_decode = decode != nullptr && decode->threads == count ? ceiling : ceiling_of_decode;
    }
    json->close_object();
    if (decode != nullptr) {
      json->member("bytes_per_second", bytes_per_token * mean_rate(*decode));
      json->member("fraction_of_read_ceiling", bytes_per_token * mean_rate(*decode) / ceiling_of_decode);
    }
  }
  json->close_object();
}

void write_rows(const std::vector<Row>& rows, Json* json) {
  json->key("rows").open_list();
  for (const Row& row : rows) {
    json->open_object();
    json->member("test", row.test).member("threads", row.threads).member("depth", row.depth);
    json->member("tokens", row.tokens).member("tokens_per_second", mean_rate(row));
    json->member("stddev", spread_of_rate(row));
    json->list("samples", row.samples);
    json->close_object();
  }
  json->close_list();
}

uint32_t largest(const std::vector<uint32_t>& values) {
  return values.empty() ? 0 : *std::max_element(values.begin(), values.end());
}

}  // namespace

void bench(int count, char** words) {
  const Arguments arguments(count, words, {{"-p"}, {"-n"}, {"-d"}, {"-r"}, {"-t"}, kJson});
  const Model model(arguments.file());
  const uint32_t context = model.info().context;
  const uint32_t depth = static_cast<uint32_t>(arguments.whole("-d", 0, 0, context - 1));
  const uint32_t left = context - depth;
  // The default lengths give way to a short context; lengths that were asked for do not.
  const std::vector<uint32_t> prompts = arguments.list("-p", {std::min(512u, left)}, 0, left);
  const std::vector<uint32_t> answers = arguments.list("-n", {std::min(128u, left)}, 0, left);
  const uint32_t runs = static_cast<uint32_t>(arguments.whole("-r", 5, 1, kMostRuns));

  edgekit_session_options options{};
  const uint32_t most_tokens = std::max({1u, largest(prompts), largest(answers)});
  options.context = depth + most_tokens;
  options.spin_microseconds = UINT32_MAX;
  std::vector<uint32_t> threads = arguments.list("-t", {}, 1, kMostThreads);
  options.decode_threads = options.prefill_threads = largest(threads);
  Session session(model, options);
  if (threads.empty()) {
    threads.push_back(session.decode_threads());
    if (session.prefill_threads() != session.decode_threads()) {
      threads.push_back(session.prefill_threads());
    }
  }
  const uint32_t most_threads = largest(threads);
  Measurement measurement(model, session);
  const std::vector<uint32_t> tokens = random_tokens(std::max(depth, most_tokens), model.info().vocab);
  Bench bench(model, &session, tokens);
  std::vector<Row> rows;
  for (const uint32_t team : threads) {
    for (const uint32_t length : prompts) {
      if (length > 0) {
        rows.push_back(bench.run(true, length, depth, team, runs));
      }
    }
    for (const uint32_t length : answers) {
      if (length > 0) {
        rows.push_back(bench.run(false, length, depth, team, runs));
      }
    }
  }
  session.set_threads(most_threads, most_threads);
  measurement.finish();
  const std::string json_path = arguments.text("--json");
  if (json_path.empty()) {
    return print_table(rows);
  }
  Json json;
  json.open_object();
  const double load_seconds = model.load_seconds() + session.create_seconds();
  json.member("load_seconds", load_seconds);
  json.key("latency").open_object().member("load_seconds", load_seconds).close_object();
  measurement.write_memory(&json);
  write_bandwidth(model, rows, threads, measurement.machine().emulated, &json);
  measurement.write_device(&json);
  write_rows(rows, &json);
  measurement.write_kernels(&json);
  measurement.write_warnings(&json);
  json.close_object();
  write_text(json_path, json.text());
}

}  // namespace edgekit::runner
