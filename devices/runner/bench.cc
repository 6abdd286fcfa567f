// Times prefill and decode on random tokens: rows pp<n> and tg<n>, each run after one that is not counted.
#include <algorithm>
#include <cstring>

#include "bench_rows.h"
#include "clock.h"
#include "failure.h"
#include "measurement.h"
#include "verbs.h"

namespace edgekit::runner {
namespace {

constexpr uint32_t kMostRuns = 1000;
constexpr uint64_t kSeed = 1;

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
      : model_(model), session_(session), tokens_(tokens), logits_(model.info().vocab) {}

  BenchRow run(bool is_prefill, uint32_t count, uint32_t depth, uint32_t threads, uint32_t runs) {
    BenchRow row;
    row.test = (is_prefill ? "pp" : "tg") + std::to_string(count);
    row.threads = threads;
    row.depth = depth;
    row.tokens = count;
    session_->set_threads(threads, threads);
    session_->reset(0);
    if (depth > 0) {
      session_->forward(tokens_.data(), depth, nullptr, 0);
    }
    const KernelCounts before = count_products();
    for (uint32_t i = 0; i <= runs; ++i) {
      session_->reset(depth);
      const double start = seconds_now();
      is_prefill ? prefill(count) : decode(count);
      if (i > 0) {
        row.samples.push_back(seconds_now() - start);
      }
    }
    name_kernels(before, &row);
    row.bytes_per_token = is_prefill ? 0 : bytes_per_token(count, depth);
    return row;
  }

 private:
  using KernelCounts = std::vector<uint64_t>;  // of each of edgekit_gemm_kernels

  KernelCounts count_products() const {
    size_t count = 0;
    const edgekit_gemm_kernel* kernels = edgekit_gemm_kernels(&count);
    KernelCounts products(count);
    for (size_t i = 0; i < count; ++i) {
      products[i] = session_->products(kernels[i]);
    }
    return products;
  }

  // The kernels that multiplied since `before`, and whether one of them did so for another.
  void name_kernels(const KernelCounts& before, BenchRow* row) const {
    const KernelCounts now = count_products();
    for (size_t i = 0, count = 0; i < now.size(); ++i) {
      if (now[i] > before[i]) {
        row->kernels.push_back(edgekit_gemm_kernels(&count)[i].name);
      }
    }
    size_t count = 0;
    const edgekit_kernel_use* uses = edgekit_program_kernels(model_.program(), &count);
    for (size_t i = 0; i < count; ++i) {
      const bool ran = std::find(row->kernels.begin(), row->kernels.end(), uses[i].runs) != row->kernels.end();
      row->fell_back = row->fell_back || (ran && std::strcmp(uses[i].planned, uses[i].runs) != 0);
    }
  }

  // Weights, and the cache as it grows from `depth` on: the mean of `count` tokens.
  double bytes_per_token(uint32_t count, uint32_t depth) const {
    uint64_t attended = 0;
    for (uint32_t i = 0; i < count; ++i) {
      attended += session_->attended_bytes(depth + i);
    }
    return static_cast<double>(model_.info().bytes_per_token) + static_cast<double>(attended) / count;
  }

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

  const Model& model_;
  Session* session_;
  const std::vector<uint32_t>& tokens_;
  std::vector<float> logits_;
};

// The read ceiling of every number of threads that decoded, and a doubt where decoding was faster.
ReadCeilings measure_ceilings(const std::vector<BenchRow>& rows, Measurement* measurement) {
  ReadCeilings ceilings;
  if (measurement->machine().emulated) {
    return ceilings;
  }
  for (const BenchRow& row : rows) {
    if (row.bytes_per_token > 0 && ceilings.count(row.threads) == 0) {
      ceilings[row.threads] = measure_read_ceiling(row.threads);
    }
    if (fraction_of_ceiling(row, ceilings) > 1) {
      measurement->warn(row.test + " with " + std::to_string(row.threads) +
                        (row.threads > 1 ? " threads" : " thread") +
                        ": faster than memory is read, so weights came from a cache");
    }
  }
  return ceilings;
}

void write_bandwidth(const Model& model, const ReadCeilings& ceilings, Json* json) {
  json->key("bandwidth").open_object();
  json->member("bytes_per_token", model.info().bytes_per_token);
  json->key("read_ceiling_bytes_per_second").open_object();
  for (const auto& [threads, ceiling] : ceilings) {
    json->member(std::to_string(threads), ceiling);
  }
  json->close_object().close_object();
}

// Numbers of threads that the tests are run with.
struct Threads {
  uint32_t decode;
  uint32_t prefill;
};

uint32_t largest(const std::vector<uint32_t>& values) {
  return values.empty() ? 0 : *std::max_element(values.begin(), values.end());
}

}  // namespace

void bench(int count, char** words) {
  const Arguments arguments(count, words, {{"-p"}, {"-n"}, {"-d"}, {"-r"}, {"-t"}, kKv, kJson});
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
  options.kv_format = read_kv_format(arguments);
  const std::vector<uint32_t> asked = arguments.list("-t", {}, 1, EDGEKIT_MOST_THREADS);
  options.decode_threads = options.prefill_threads = largest(asked);
  Session session(model, options);
  // Without -t each test gets the threads that it has when the model is used.
  const Threads used = {session.decode_threads(), session.prefill_threads()};
  std::vector<Threads> threads;
  for (const uint32_t number : asked) {
    threads.push_back({number, number});
  }
  if (threads.empty()) {
    threads.push_back(used);
  }
  Measurement measurement(model, session);
  const std::vector<uint32_t> tokens = random_tokens(std::max(depth, most_tokens), model.info().vocab);
  Bench bench(model, &session, tokens);
  std::vector<BenchRow> rows;
  for (const Threads& team : threads) {
    for (const uint32_t length : prompts) {
      if (length > 0) {
        rows.push_back(bench.run(true, length, depth, team.prefill, runs));
      }
    }
    for (const uint32_t length : answers) {
      if (length > 0) {
        rows.push_back(bench.run(false, length, depth, team.decode, runs));
      }
    }
  }
  session.set_threads(used.decode, used.prefill);
  measurement.finish();
  const ReadCeilings ceilings = measure_ceilings(rows, &measurement);
  const std::string json_path = arguments.text("--json");
  if (json_path.empty()) {
    measurement.print_warnings();
    return print_table(rows, ceilings, measurement.machine().emulated);
  }
  Json json;
  json.open_object();
  const double load_seconds = model.load_seconds() + session.create_seconds();
  json.member("load_seconds", load_seconds);
  json.key("latency").open_object().member("load_seconds", load_seconds).close_object();
  measurement.write_memory(&json);
  write_bandwidth(model, ceilings, &json);
  measurement.write_device(&json);
  write_rows(rows, ceilings, &json);
  measurement.write_kernels(&json);
  measurement.write_warnings(&json);
  json.close_object();
  write_text(json_path, json.text());
}

}  // namespace edgekit::runner
