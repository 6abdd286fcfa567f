#include "bench_rows.h"

#include <cmath>
#include <cstdio>

namespace edgekit::runner {
namespace {

// Right-aligned; "-" for what is not a number.
void print_number(double number, int width, int decimals, const char* unit = "") {
  if (std::isfinite(number)) {
    std::printf(" %*.*f%s", width - static_cast<int>(std::string(unit).size()), decimals, number, unit);
  } else {
    std::printf(" %*s", width, "-");
  }
}

}  // namespace

double BenchRow::mean_rate() const {
  double sum = 0;
  for (const double seconds : samples) {
    sum += tokens / seconds;
  }
  return sum / static_cast<double>(samples.size());
}

double BenchRow::spread_of_rate() const {
  const double mean = mean_rate();
  double squares = 0;
  for (const double seconds : samples) {
    squares += (tokens / seconds - mean) * (tokens / seconds - mean);
  }
  return samples.size() > 1 ? std::sqrt(squares / static_cast<double>(samples.size() - 1)) : 0;
}

double fraction_of_ceiling(const BenchRow& row, const ReadCeilings& ceilings) {
  const auto ceiling = ceilings.find(row.threads);
  const bool is_known = row.bytes_per_token > 0 && ceiling != ceilings.end() && ceiling->second > 0;
  return is_known ? row.bytes_per_second() / ceiling->second : NAN;
}

void print_table(const std::vector<BenchRow>& rows, const ReadCeilings& ceilings, bool emulated) {
  std::printf("%-10s %7s %7s %12s %10s %8s %12s  %s\n", "test", "threads", "depth", "tokens/s", "+-", "GB/s",
              "of ceiling", "kernels");
  for (const BenchRow& row : rows) {
    std::printf("%-10s %7u %7u", row.test.c_str(), row.threads, row.depth);
    print_number(emulated ? NAN : row.mean_rate(), 12, 2);
    print_number(emulated || row.samples.size() < 2 ? NAN : row.spread_of_rate(), 10, 2);
    print_number(emulated || row.bytes_per_token == 0 ? NAN : row.bytes_per_second() / 1e9, 8, 2);
    print_number(100 * fraction_of_ceiling(row, ceilings), 12, 0, "%");
    const char* before = "  ";
    for (const std::string& kernel : row.kernels) {
      std::printf("%s%s", before, kernel.c_str());
      before = ", ";
    }
    std::printf("%s\n", row.fell_back ? " (not as planned)" : "");
  }
}

void write_rows(const std::vector<BenchRow>& rows, const ReadCeilings& ceilings, Json* json) {
  json->key("rows").open_list();
  for (const BenchRow& row : rows) {
    json->open_object();
    json->member("test", row.test).member("threads", row.threads).member("depth", row.depth);
    json->member("tokens", row.tokens).member("tokens_per_second", row.mean_rate());
    json->member("stddev", row.spread_of_rate());
    if (row.bytes_per_token > 0) {
      json->member("bytes_per_token", row.bytes_per_token);
      json->member("bytes_per_second", row.bytes_per_second());
      json->member("fraction_of_read_ceiling", fraction_of_ceiling(row, ceilings));
    }
    json->list("kernels", row.kernels).member("fell_back", row.fell_back);
    json->list("samples", row.samples);
    json->close_object();
  }
  json->close_list();
}

}  // namespace edgekit::runner
