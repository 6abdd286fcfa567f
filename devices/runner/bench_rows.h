// What bench found, a row a test, and how it is shown.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "json.h"

namespace edgekit::runner {

struct BenchRow {
  std::string test;
  uint32_t threads = 0;
  uint32_t depth = 0;
  uint32_t tokens = 0;
  std::vector<double> samples;       // seconds
  std::vector<std::string> kernels;  // that ran
  bool fell_back = false;            // one of them in the place of another that was planned
  double bytes_per_token = 0;        // weights and cache that decoding reads, on average; 0: not decoding

  double mean_rate() const;       // tokens a second
  double spread_of_rate() const;  // standard deviation; 0 for one sample
  double bytes_per_second() const { return bytes_per_token * mean_rate(); }
};

// Bytes a second that so many threads read from memory; empty where time has no meaning.
using ReadCeilings = std::map<uint32_t, double>;

// The row's share of the ceiling of as many threads; not a number where there is none.
double fraction_of_ceiling(const BenchRow& row, const ReadCeilings& ceilings);

// Without rates if `emulated`, and without a spread where there is one sample.
void print_table(const std::vector<BenchRow>& rows, const ReadCeilings& ceilings, bool emulated);

void write_rows(const std::vector<BenchRow>& rows, const ReadCeilings& ceilings, Json* json);

}  // namespace edgekit::runner
