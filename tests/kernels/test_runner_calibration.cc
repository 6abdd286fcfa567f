// Calibrations: what their file says, for whom, and which number of threads is chosen.
#include <string>
#include <vector>

#include "calibration.h"
#include "check.h"

namespace edgekit::testing {
namespace {

using namespace runner;

const CalibratedFor kHere = {"Cortex-A76", "0-3", "neon_dotprod", 123456, 7};
const std::string kText =
    "edgekit-calibration 1\ncpu Cortex-A76\ncpus 0-3\nisa neon_dotprod\nmodel_bytes 123456\nmodel_crc 7\n"
    "decode_threads 3\nprefill_threads 4\n";

// `text` with `from` replaced.
std::string with(std::string text, const std::string& from, const std::string& to) {
  const size_t at = text.find(from);
  CHECK(at != std::string::npos);
  return text.replace(at, from.size(), to);
}

// What is doubtful about a text that must say nothing.
std::string doubt_about(const std::string& text) {
  std::string doubt;
  const Calibration found = parse_calibration(text, kHere, &doubt);
  CHECK_THAT(found.decode_threads == 0 && found.prefill_threads == 0, "'%s'", text.c_str());
  return doubt;
}

TEST(a_calibration_is_lines_of_keys_and_values) {
  CHECK(format_calibration(kHere, {3, 4}) == kText);
  std::string doubt;
  const Calibration found = parse_calibration(kText, kHere, &doubt);
  CHECK(found.decode_threads == 3 && found.prefill_threads == 4 && doubt.empty());
}

TEST(a_name_with_line_breaks_or_without_end_makes_no_other_lines) {
  CalibratedFor here = kHere;
  here.cpu = "A\ndecode_threads 200\n" + std::string(100000, 'x');
  std::string doubt;
  const std::string text = format_calibration(here, {3, 4});
  CHECK(text.size() < 4096);
  CHECK(parse_calibration(text, here, &doubt).decode_threads == 3 && doubt.empty());
}

TEST(a_calibration_for_something_else_is_ignored_with_the_reason) {
  const std::string machine = "the calibration beside the model is for another machine, and was ignored";
  const std::string model = "the calibration beside the model is for another model, and was ignored";
  CHECK(doubt_about(with(kText, "Cortex-A76", "Cortex-A53")) == machine);
  CHECK(doubt_about(with(kText, "0-3", "0-7")) == machine);
  // EDGEKIT_ISA lowers it on the same machine.
  CHECK(doubt_about(with(kText, "neon_dotprod", "neon")) ==
        "the calibration beside the model is for another ISA, and was ignored");
  CHECK(doubt_about(with(kText, "123456", "123457")) == model);
  CHECK(doubt_about(with(kText, "crc 7", "crc 8")) == model);
}

TEST(whatever_else_a_file_holds_is_ignored) {
  const std::string damaged = "the calibration beside the model is not one that this edgekit writes, and was ignored";
  for (const std::string& text : {
           std::string(), std::string("\n"), std::string(4096, 'x'), std::string(100, '\0'), kText + "more 1\n",
           kText + "decode_threads 3\n", kText.substr(0, kText.size() - 1),
           with(kText, "calibration 1", "calibration 2"),
           with(kText, "decode_threads 3\n", ""), with(kText, "threads 3", "threads 0"),
           with(kText, "threads 3", "threads 257"), with(kText, "threads 3", "threads -1"),
           with(kText, "threads 3", "threads 3 "), with(kText, "threads 3", "threads 99999999999999999999"),
           with(kText, "threads 3", "threads"), with(kText, "cpus", " cpus")}) {
    CHECK_THAT(doubt_about(text) == damaged, "'%s'", text.c_str());
  }
  for (size_t length = 0; length < kText.size(); length++) CHECK(doubt_about(kText.substr(0, length)) == damaged);
}

TEST(numbers_of_threads_to_try_are_few_and_end_with_all) {
  using Counts = std::vector<uint32_t>;
  CHECK(counts_to_try({1}) == (Counts{1}));
  CHECK(counts_to_try({1, 1}) == (Counts{1, 2}));
  CHECK(counts_to_try({1, 1, 1, 1}) == (Counts{1, 2, 3, 4}));
  // Four slow, three faster, one fastest: 1, 4 and 8 are as fast as a kind of CPU.
  CHECK(counts_to_try({400, 400, 400, 400, 760, 760, 760, 1520}) == (Counts{1, 2, 3, 4, 8}));
  CHECK(counts_to_try({1, 1, 1, 1, 1, 1, 9, 9, 9, 9, 9, 9}) == (Counts{1, 2, 3, 4, 6, 8, 12}));
}

// Passes of 1/32 s and their multiples: exact in binary.
TEST(a_sample_is_the_mean_of_as_many_passes_as_take_a_tenth_of_a_second) {
  const auto sample = [](std::vector<double> passes, size_t used) {
    size_t taken = 0;
    const double seconds = take_sample([&] { return passes[taken++]; });
    CHECK_THAT(taken == used, "%zu passes", taken);
    return seconds;
  };
  CHECK(sample({0.25, 9}, 1) == 0.25);
  CHECK(sample({0.03125, 0.0625, 0.03125, 9}, 3) == 0.125 / 3);
  CHECK(sample(std::vector<double>(1000, 0.0009765625), 103) == 0.0009765625);  // 102 take 0.0996 s
}

TEST(samples_that_spread_by_more_than_a_tenth_are_doubted) {
  CHECK(find_doubt("pp256", {1, {1.0}}).empty());
  CHECK(find_doubt("pp256", {1, {1.0, 1.0, 1.0}}).empty());
  // Rates 1 and 2: the mean is 1.5 and the standard deviation 0.707, 47 % of it.
  CHECK(find_doubt("pp256", {1, {1.0, 0.5}}) == "pp256 with 1 thread: samples spread by 47%");
  // Rates 9.01, 10, 10.99: 9.9 %; and 8, 10, 12: 20 %.
  CHECK(find_doubt("tg1", {2, {1.0 / 9.01, 0.1, 1.0 / 10.99}}).empty());
  CHECK(find_doubt("tg1", {2, {0.125, 0.1, 1.0 / 12}}) == "tg1 with 2 threads: samples spread by 20%");
}

TEST(fewer_threads_are_chosen_if_more_gain_less_than_three_percent) {
  CHECK(choose_count({{1, {1.0}}, {2, {0.98}}}) == 1);
  CHECK(choose_count({{1, {1.0}}, {2, {0.96}}}) == 2);
  CHECK(choose_count({{1, {1.0}}, {2, {0.6}}, {4, {0.59}}}) == 2);
  CHECK(choose_count({{1, {1.0}}, {2, {1.5}}}) == 1);
  // The median counts: one sample that was disturbed, or lucky, changes nothing.
  CHECK(choose_count({{1, {1.0, 1.0, 1.0}}, {2, {0.5, 0.5, 9.0}}, {3, {0.1, 0.7, 0.7}}}) == 2);
}

}  // namespace
}  // namespace edgekit::testing

EDGEKIT_TEST_MAIN
