// The verbs of edgekit-run on small models: what they write, what they refuse and with which exit code.
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <functional>
#include <string>

#include "bench_rows.h"
#include "calibration.h"
#include "check.h"
#include "edgekit/cpu.h"
#include "failure.h"
#include "json.h"
#include "machine.h"
#include "program/probe_format.h"
#include "program_builder.h"
#include "program_handles.h"
#include "tokenizer_section.h"
#include "verbs.h"

namespace edgekit::testing {
namespace {

using runner::Failure;
using Verb = void (*)(int, char**);

// A folder that is removed with the files that were named in it.
class Folder {
 public:
  Folder() {
    const char* root = std::getenv("TMPDIR");
    path_ = std::string(root != nullptr ? root : "/tmp") + "/edgekit-test-XXXXXX";
    if (mkdtemp(path_.data()) == nullptr) std::abort();
  }
  ~Folder() {
    for (const std::string& file : files_) unlink(file.c_str());
    rmdir(path_.c_str());
  }

  std::string name(const std::string& file) {
    files_.push_back(path_ + "/" + file);
    return files_.back();
  }

  std::string write(const std::string& file, const void* data, size_t bytes) {
    const std::string path = name(file);
    std::FILE* stream = std::fopen(path.c_str(), "wb");
    if (stream == nullptr || (bytes > 0 && std::fwrite(data, 1, bytes, stream) != bytes)) std::abort();
    std::fclose(stream);
    return path;
  }

 private:
  std::string path_;
  std::vector<std::string> files_;
};

std::string read_file(const std::string& path) {
  std::string text;
  std::FILE* stream = std::fopen(path.c_str(), "rb");
  if (stream == nullptr) return text;
  char part[4096];
  for (size_t got; (got = std::fread(part, 1, sizeof part, stream)) > 0;) text.append(part, got);
  std::fclose(stream);
  return text;
}

// Exit code 0 and no message if the verb returns.
Failure run(Verb verb, std::vector<std::string> words) {
  std::vector<char*> pointers;
  for (std::string& word : words) pointers.push_back(word.data());
  try {
    verb(static_cast<int>(pointers.size()), pointers.data());
  } catch (const Failure& failure) {
    return failure;
  }
  return {0, "", ""};
}

// The number after "key": in JSON text, or not-a-number.
double number_at(const std::string& json, const std::string& key) {
  const size_t at = json.find("\"" + key + "\":");
  return at == std::string::npos ? NAN : std::strtod(json.c_str() + at + key.size() + 3, nullptr);
}

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

struct Files {
  explicit Files(const std::function<void(ProgramWriter*)>& prepare = [](ProgramWriter*) {}, uint32_t context = 256,
                 edgekit::format::KvFormat kv = edgekit::format::KvFormat::kF16) {
    ModelShape shape;
    shape.context = context;
    shape.kv = kv;
    ProgramWriter writer(shape);
    writer.eos = {};
    prepare(&writer);
    file = writer.write();
    data = aligned(file.data(), file.size());
    program = open(data, file.size());
    model = folder.write("model.edge", file.data(), file.size());
    json = folder.name("report.json");
    vocab = shape.vocab;
  }

  std::vector<float> logits_of(const std::vector<uint32_t>& tokens) const {
    const Session session = start(program, 1);
    std::vector<float> logits(tokens.size() * vocab);
    edgekit_error error{};
    CHECK(edgekit_session_forward(session.get(), tokens.data(), tokens.size(), logits.data(), tokens.size(), &error) ==
          EDGEKIT_OK);
    return logits;
  }

  // Greedy, from the logits of the whole text each time.
  std::vector<uint32_t> continue_text(std::vector<uint32_t> tokens, size_t count) const {
    std::vector<uint32_t> made;
    while (made.size() < count) {
      const std::vector<float> logits = logits_of(tokens);
      const float* last = &logits[(tokens.size() - 1) * vocab];
      uint32_t best = 0;
      for (uint32_t token = 1; token < vocab; token++) best = last[token] > last[best] ? token : best;
      made.push_back(best);
      tokens.push_back(best);
    }
    return made;
  }

  Folder folder;
  std::vector<uint8_t> file;
  Bytes data;
  Program program;
  std::string model, json;
  size_t vocab;
};

std::string joined(const std::vector<uint32_t>& tokens) {
  std::string text;
  for (const uint32_t token : tokens) {
    if (!text.empty()) text += ',';
    text += std::to_string(token);
  }
  return text;
}

TEST(generate_continues_tokens_greedily) {
  Files files;
  const std::vector<uint32_t> expected = files.continue_text({5, 6, 7}, 12);
  const Failure failure = run(runner::generate, {files.model, "--tokens", "5,6,7", "-n", "12", "--temperature", "0",
                                                 "--threads", "2", "--json", files.json});
  CHECK_THAT(failure.exit_code == 0, "%s", failure.message.c_str());
  const std::string json = read_file(files.json);
  CHECK(has(json, "\"tokens\":[" + joined(expected) + "],\"prompt_tokens\":[5,6,7]"));
  CHECK(has(json, "\"stop\":\"length\""));
  for (const char* key : {"load_seconds", "ttft_seconds", "prefill_tokens_per_second", "decode_tokens_per_second",
                          "p50", "p90", "p99", "peak_rss_bytes", "anonymous_bytes", "bytes_per_second"}) {
    CHECK_THAT(number_at(json, key) > 0, "%s", key);
  }
  // 2 layers * (keys and values) * 2 heads * 256 positions * 16 numbers * 2 bytes
  CHECK(number_at(json, "kv_bytes") == 2 * 2 * 2 * 256 * 16 * 2);
  CHECK(has(json, "fewer samples than the 99th percentile needs: 11"));
}

TEST(keys_and_values_are_kept_as_kv_says) {
  Files files([](ProgramWriter*) {}, 256, edgekit::format::KvFormat::kQ8);
  const std::vector<uint32_t> expected = files.continue_text({5, 6, 7}, 12);
  for (const std::string kv : {"", "q8", "f16"}) {
    std::vector<std::string> words = {files.model, "--tokens", "5,6,7", "-n", "12", "--temperature", "0",
                                      "--json", files.json};
    if (!kv.empty()) words.insert(words.end(), {"--kv", kv});
    CHECK(run(runner::generate, words).exit_code == 0);
    const std::string json = read_file(files.json);
    CHECK(kv == "f16" || has(json, "\"tokens\":[" + joined(expected) + "]"));
    CHECK(has(json, kv == "f16" ? "\"kv_format\":\"f16\"" : "\"kv_format\":\"q8\""));
    // 2 layers * (keys and values) * 2 heads * 256 positions * 16 halves, or 16 codes and their scale
    CHECK(number_at(json, "kv_bytes") == 2 * 2 * 2 * 256 * (kv == "f16" ? 16 * 2 : 16 + 4));
  }
}

TEST(generate_stops_at_a_token_that_ends_a_text) {
  const std::vector<uint32_t> unstopped = Files().continue_text({5}, 20);
  const uint32_t last = unstopped[4];
  size_t length = 0;
  while (unstopped[length] != last) length++;
  Files files([&](ProgramWriter* writer) { writer->eos = {99, last}; });
  CHECK(run(runner::generate,
            {files.model, "--tokens", "5", "-n", "20", "--temperature", "0", "--json", files.json}).exit_code == 0);
  const std::string json = read_file(files.json);
  const std::vector<uint32_t> expected(unstopped.begin(), unstopped.begin() + static_cast<long>(length) + 1);
  CHECK(has(json, "\"tokens\":[" + joined(expected) + "]"));
  CHECK(has(json, "\"stop\":\"eos\""));
}

TEST(generate_ends_when_the_context_is_full_and_says_so) {
  Files files;
  CHECK(run(runner::generate, {files.model, "--tokens", "1,2,3,4", "-n", "50", "--context", "8", "--json", files.json})
            .exit_code == 0);
  const std::string json = read_file(files.json);
  CHECK(has(json, "the context of 8 tokens was full before the end"));
  // Four tokens of prompt, four more in the cache, and the one they predict.
  const size_t begin = json.find('['), end = json.find(']');
  size_t tokens = 1;
  for (size_t i = begin; i < end; i++) tokens += json[i] == ',';
  CHECK_THAT(tokens == 5, "%zu", tokens);
}

// What `work` writes to stdout or stderr.
std::string written_to(std::FILE* stream, Folder* folder, const std::function<void()>& work) {
  const std::string path = folder->name("written");
  const int number = fileno(stream);
  std::fflush(stream);
  const int kept = dup(number);
  if (kept < 0 || std::freopen(path.c_str(), "w", stream) == nullptr) std::abort();
  work();
  std::fflush(stream);
  dup2(kept, number);
  close(kept);
  return read_file(path);
}

std::string errors_of(Folder* folder, Verb verb, const std::vector<std::string>& words) {
  return written_to(stderr, folder, [&] { CHECK(run(verb, words).exit_code == 0); });
}

TEST(warnings_are_printed_where_no_report_carries_them) {
  Files files;
  const std::vector<std::string> words = {files.model, "--tokens", "1,2,3,4", "-n", "50", "--context", "8"};
  CHECK(errors_of(&files.folder, runner::generate, words) ==
        "edgekit-run: warning: the context of 8 tokens was full before the end\n");
  CHECK(errors_of(&files.folder, runner::generate, {files.model, "--tokens", "1", "-n", "2"}).empty());
}

TEST(a_prompt_stays_open_where_the_template_ends_texts) {
  SectionParts parts;
  for (int id = 0; id < 100; id++) parts.tokens.emplace_back(1, static_cast<char>(id));
  for (int id = 0; id < 100; id++) parts.byte_ids[static_cast<size_t>(id)] = static_cast<uint32_t>(id);
  parts.before = {1};
  parts.after = {7, 2};
  Section section(parts);
  const auto prompt_of = [&](const std::vector<uint32_t>& eos, std::vector<std::string> words) {
    Files files([&](ProgramWriter* writer) {
      writer->tokenizer.assign(section.data(), section.data() + section.size());
      writer->eos = eos;
    });
    words.insert(words.begin(), files.model);
    words.insert(words.end(), {"-n", "1", "--json", files.json});
    const Failure failure = run(runner::generate, words);
    CHECK_THAT(failure.exit_code == 0, "%s", failure.message.c_str());
    const std::string json = read_file(files.json);
    const size_t at = json.find("\"prompt_tokens\":");
    return json.substr(at + 16, json.find(']', at) - at - 15);
  };
  CHECK(prompt_of({2}, {"--prompt", "\x05\x02"}) == "[1,5,2,7]");
  CHECK(prompt_of({2, 7}, {"--prompt", "\x05\x02"}) == "[1,5,2]");
  CHECK(prompt_of({3}, {"--prompt", "\x05"}) == "[1,5,7,2]");
  CHECK(prompt_of({2}, {"--raw", "--prompt", "\x05\x02"}) == "[5,2]");
}

TEST(the_same_seed_gives_the_same_tokens_and_another_gives_others) {
  Files files;
  std::string found[3];
  const char* seeds[] = {"7", "7", "8"};
  for (int i = 0; i < 3; i++) {
    run(runner::generate, {files.model, "--tokens", "5", "-n", "40", "--seed", seeds[i], "--json", files.json});
    const std::string json = read_file(files.json);
    found[i] = json.substr(0, json.find(']'));
  }
  CHECK(found[0] == found[1] && found[0] != found[2]);
}

TEST(an_interrupt_ends_the_answer_with_130) {
  Files files;
  runner::interrupt();
  const Failure failure = run(runner::generate, {files.model, "--tokens", "5", "--json", files.json});
  CHECK(failure.exit_code == 130 && failure.message == "interrupted");
}

TEST(what_cannot_be_run_is_refused_with_a_sentence) {
  Files files;
  const auto refuses = [&](Verb verb, std::vector<std::string> words, int code, const std::string& message) {
    const Failure failure = run(verb, words);
    return CHECK_THAT(failure.exit_code == code && failure.message == message, "%d: %s", failure.exit_code,
                      failure.message.c_str());
  };
  const std::string& model = files.model;
  refuses(runner::generate, {}, 2, "no model is given");
  refuses(runner::generate, {"--tokens", "1"}, 2, "no model is given");
  refuses(runner::generate, {model}, 2, "no prompt is given");
  refuses(runner::generate, {model, "--tokens", "1", "--prompt", "a"}, 2, "more than one prompt is given");
  refuses(runner::generate, {model, "--prompt", "a"}, 2, "this model has no tokenizer");
  refuses(runner::generate, {model, "--tokens", "100"}, 2, "--tokens is '100'");
  refuses(runner::generate, {model, "--tokens", "1,,2"}, 2, "--tokens is ''");
  refuses(runner::generate, {model, "--tokens", "1", "-n", "0"}, 2, "-n is '0'");
  refuses(runner::generate, {model, "--tokens", "1", "-n", "12x"}, 2, "-n is '12x'");
  refuses(runner::generate, {model, "--tokens", "1", "--temperature", "nan"}, 2, "--temperature is 'nan'");
  refuses(runner::generate, {model, "--tokens", "1", "--context", "257"}, 2, "--context is '257'");
  refuses(runner::generate, {model, "--tokens", "1,2,3", "--context", "2"}, 2,
          "the prompt has 3 tokens and the context holds 2");
  refuses(runner::generate, {model, "--tokens", "1", "--kv", "q4"}, 2, "--kv is 'q4'");
  refuses(runner::bench, {model, "--kv", ""}, 2, "--kv is ''");
  refuses(runner::generate, {model, "--tokens"}, 2, "option '--tokens' needs a value");
  refuses(runner::generate, {model, "--speed", "9"}, 2, "there is no option '--speed' here");
  refuses(runner::generate, {model, model, "--tokens", "1"}, 2, "'" + model + "' is one file too many");
  refuses(runner::info, {"/no/such.edge"}, 2, "'/no/such.edge' cannot be opened: No such file or directory");
  refuses(runner::info, {"/"}, 7, "'/' is not a file that can be mapped into memory");
  refuses(runner::probe, {model}, 2, "this model carries no probe");
  refuses(runner::tokenize, {model}, 2, "this model has no tokenizer");
  refuses(runner::logits, {model, "--out", files.json}, 2, "--token-file and --out are both needed");
  refuses(runner::bench, {model, "-p", "300"}, 2, "-p is '300'");
  const std::string odd = files.folder.write("odd", "12345", 5);
  const std::string no_list = "'" + odd + "' is not a list of tokens";
  refuses(runner::logits, {model, "--token-file", odd, "--out", files.json}, 2, no_list);
}

TEST(help_is_of_every_verb_or_of_one) {
  Files files;
  const auto help_of = [&](const std::vector<std::string>& words) {
    return written_to(stdout, &files.folder, [&] { CHECK(run(runner::run_verb, words).exit_code == 0); });
  };
  const std::string all = help_of({"--help"});
  CHECK(all == help_of({"-h"}) && has(all, "FILE may be - for standard output.\n"));
  for (const char* name : {"generate", "bench", "calibrate", "probe", "logits", "tokenize", "detokenize", "info",
                           "verify", "cpu"}) {
    const std::string one = help_of({name, "--help"});
    CHECK_THAT(one.find("edgekit-run " + std::string(name)) == 0 && has(all, one), "%s", one.c_str());
    CHECK(help_of({name, files.model, "-h"}) == one);
  }
  CHECK(!has(help_of({"bench", "-h"}), "generate"));
  // The value of an option asks for nothing.
  CHECK(run(runner::run_verb, {"generate", files.model, "--prompt", "-h"}).message == "this model has no tokenizer");
  CHECK(run(runner::run_verb, {"fly"}).message == "there is no verb 'fly'");
  CHECK(run(runner::run_verb, {}).message == "nothing to do is given");
}

// EDGEKIT_ISA as it was, once this is gone.
class KeptIsa {
 public:
  KeptIsa() : isa_(std::getenv("EDGEKIT_ISA") == nullptr ? "" : std::getenv("EDGEKIT_ISA")) {}
  ~KeptIsa() { setenv("EDGEKIT_ISA", isa_.c_str(), 1); }

 private:
  const std::string isa_;
};

TEST(an_unknown_word_in_the_environment_is_refused_with_those_that_are_known) {
  const KeptIsa kept;
  Files files;
  setenv("EDGEKIT_ISA", "avx3", 1);
  const Failure failure = run(runner::run_verb, {"verify", files.model});
  CHECK(failure.exit_code == 2 && failure.message == "EDGEKIT_ISA is 'avx3'");
  CHECK(failure.hint == "one of: avx512_vnni, avx_vnni, avx2, neon_i8mm, neon_dotprod, neon, scalar");
  for (const char* word : {"scalar", "neon_i8mm", "avx2", ""}) {
    setenv("EDGEKIT_ISA", word, 1);
    CHECK_THAT(run(runner::run_verb, {"verify", files.model}).exit_code == 0, "%s", word);
  }
}

TEST(a_cpu_that_runs_other_kernels_is_doubtful_and_what_lowers_it_is_named) {
  const KeptIsa kept;
  const bool is_arm = (edgekit_isa_features("neon") & ~edgekit_cpu_features()) == 0;
  Files files([&](ProgramWriter* writer) { writer->kernel_features = edgekit_isa_features(is_arm ? "avx2" : "neon"); });
  const std::vector<std::string> words = {files.model, "--tokens", "5", "-n", "1", "--json", files.json};
  const std::string end = " does not run the planned kernels; slower ones took their place";
  setenv("EDGEKIT_ISA", "", 1);
  CHECK(run(runner::generate, words).exit_code == 0 && has(read_file(files.json), "this CPU" + end));
  setenv("EDGEKIT_ISA", "scalar", 1);
  CHECK(run(runner::generate, words).exit_code == 0);
  CHECK(has(read_file(files.json), "this CPU, lowered by EDGEKIT_ISA=scalar," + end));
}

TEST(a_damaged_model_is_refused_with_7_and_damaged_weights_by_verify) {
  Files files;
  CHECK(run(runner::verify, {files.model}).exit_code == 0);
  std::vector<uint8_t> damaged = files.file;
  damaged.back() ^= 1;
  const std::string weights = files.folder.write("weights.edge", damaged.data(), damaged.size());
  CHECK(run(runner::info, {weights}).exit_code == 0);
  const Failure found = run(runner::verify, {weights});
  CHECK(found.exit_code == 7 && found.message == "the weights of the program file are damaged");
  CHECK(found.hint == "'" + weights + "' is not as it was written: copy it again");
  const std::string cut = files.folder.write("cut.edge", files.file.data(), files.file.size() / 2);
  CHECK(run(runner::generate, {cut, "--tokens", "1"}).exit_code == 7);
  const std::string empty = files.folder.write("empty.edge", "", 0);
  CHECK(run(runner::info, {empty}).exit_code == 7);
}

TEST(logits_are_those_of_the_library_however_they_are_cut) {
  Files files;
  std::vector<uint32_t> tokens(100);
  for (size_t i = 0; i < tokens.size(); i++) tokens[i] = static_cast<uint32_t>(i * 37 % files.vocab);
  const std::string list = files.folder.write("tokens", tokens.data(), tokens.size() * 4);
  const std::string out = files.folder.name("logits");
  const std::vector<float> all = files.logits_of(tokens);
  for (const size_t first : {0u, 1u, 40u, 99u, 100u}) {
    for (const char* chunk : {"1", "7", "100"}) {
      CHECK(run(runner::logits, {files.model, "--token-file", list, "--out", out, "--chunk", chunk, "--start",
                                 std::to_string(first)})
                .exit_code == 0);
      const std::string found = read_file(out);
      const size_t expected_bytes = (tokens.size() - first) * files.vocab * sizeof(float);
      CHECK(found.size() == expected_bytes);
      CHECK_THAT(std::memcmp(found.data(), all.data() + first * files.vocab, expected_bytes) == 0,
                 "start %zu, chunk %s", first, chunk);
    }
  }
}

TEST(bench_writes_a_row_for_each_test_and_number_of_threads) {
  Files files;
  CHECK(run(runner::bench, {files.model, "-p", "16,32", "-n", "4", "-d", "8", "-r", "3", "-t", "1,2", "--json",
                            files.json})
            .exit_code == 0);
  const std::string json = read_file(files.json);
  for (const char* threads : {"1", "2"}) {
    for (const char* test : {"pp16", "pp32", "tg4"}) {
      CHECK(has(json, "{\"test\":\"" + std::string(test) + "\",\"threads\":" + threads + ",\"depth\":8,"));
    }
  }
  const size_t samples = json.find("\"samples\":[", json.find("\"rows\""));
  size_t commas = 0;
  for (size_t i = samples + 11; json[i] != ']'; i++) commas += json[i] == ',';
  CHECK(commas == 2);
  CHECK(number_at(json, "bytes_per_token") > 0);
  // Four tokens see 9 to 12 positions, each 2 layers x 2 heads x (16 keys + 16 values) x 2 bytes.
  const double decode = number_at(json.substr(json.find("{\"test\":\"tg4\"")), "bytes_per_token");
  CHECK(decode == number_at(json, "bytes_per_token") + 10.5 * 256);
}

TEST(bench_runs_each_test_with_the_threads_that_were_calibrated_for_it) {
  const uint32_t most = std::min(2u, CpuSpeeds::read().count());
  Files files;
  files.folder.name("model.edge.calibration");
  runner::save_calibration(runner::Model(files.model), {1, most});
  CHECK(run(runner::bench, {files.model, "-p", "16", "-n", "4", "-r", "1", "--json", files.json}).exit_code == 0);
  const std::string json = read_file(files.json);
  CHECK(has(json, "{\"test\":\"pp16\",\"threads\":" + std::to_string(most) + ","));
  CHECK(has(json, "{\"test\":\"tg4\",\"threads\":1,"));
  CHECK(json.find("\"test\":\"pp16\"") == json.rfind("\"test\":\"pp16\""));
  CHECK(json.find("\"test\":\"tg4\"") == json.rfind("\"test\":\"tg4\""));
  CHECK(number_at(json, "decode_threads") == 1 && number_at(json, "prefill_threads") == most);
}

TEST(bench_names_the_kernels_that_ran_and_whether_they_took_the_place_of_others) {
  const auto rows_of = [](const Files& files) {
    CHECK(run(runner::bench, {files.model, "-p", "8", "-n", "2", "-r", "1", "-t", "1", "--json", files.json})
              .exit_code == 0);
    const std::string json = read_file(files.json);
    const size_t begin = json.find("\"rows\":");
    return json.substr(begin, json.find("{\"planned\"", begin) - begin);
  };
  const uint64_t features = edgekit_cpu_features();
  const std::string one = edgekit_gemm_choose(EDGEKIT_Q8, 1, features)->name;
  const std::string many = edgekit_gemm_choose(EDGEKIT_Q8, 8, features)->name;
  Files files;
  const std::string rows = rows_of(files);
  const std::string prefill = rows.substr(0, rows.find("\"tg2\""));
  const std::string decode = rows.substr(rows.find("\"tg2\""));
  // The head of prefill has one row.
  CHECK(has(prefill, one) && has(prefill, many) && has(prefill, "\"fell_back\":false"));
  CHECK(has(decode, one) && !has(decode, many) && has(decode, "\"fell_back\":false"));
  CHECK(!has(prefill, "bytes_per_second") && has(decode, "bytes_per_second"));
  for (const char* isa : {"scalar", "neon", "avx2"}) {
    const bool is_here = (edgekit_isa_features(isa) & ~features) == 0;
    Files planned([&](ProgramWriter* writer) { writer->kernel_features = edgekit_isa_features(isa); });
    CHECK_THAT(has(rows_of(planned), is_here ? "\"fell_back\":false" : "\"fell_back\":true"), "%s", isa);
    CHECK_THAT(!has(rows_of(planned), is_here ? "\"fell_back\":true" : "\"fell_back\":false"), "%s", isa);
  }
}

TEST(a_row_has_the_share_of_the_ceiling_of_its_threads) {
  runner::BenchRow row;
  row.tokens = 10;
  row.threads = 2;
  row.samples = {0.5, 2.0};  // 20 and 5 tokens a second
  row.bytes_per_token = 4;
  CHECK(row.mean_rate() == 12.5 && row.bytes_per_second() == 50);
  CHECK(std::fabs(row.spread_of_rate() - 7.5 * std::sqrt(2.0)) < 1e-12);
  CHECK(runner::fraction_of_ceiling(row, {{1, 1000}, {2, 200}}) == 0.25);
  CHECK(std::isnan(runner::fraction_of_ceiling(row, {{1, 1000}})));
  CHECK(std::isnan(runner::fraction_of_ceiling(row, {{2, 0}})));
  row.bytes_per_token = 0;
  CHECK(std::isnan(runner::fraction_of_ceiling(row, {{2, 200}})));
}

TEST(a_table_shows_no_spread_of_one_sample) {
  Folder folder;
  runner::BenchRow row;
  row.test = "tg10";
  row.tokens = 10;
  row.threads = 1;
  row.samples = {0.5, 2.0};
  const auto shown = [&] {
    const std::string table = written_to(stdout, &folder, [&] { runner::print_table({row}, {}, false); });
    return table.substr(table.find('\n') + 1);
  };
  CHECK(shown() == "tg10             1       0        12.50      10.61        -            -\n");
  row.samples = {0.5};
  CHECK(shown() == "tg10             1       0        20.00          -        -            -\n");
}

// ---- The probe.

void put(const void* data, size_t bytes, std::vector<uint8_t>* to) {
  const auto* from = static_cast<const uint8_t*>(data);
  to->insert(to->end(), from, from + bytes);
}

void put_u32(uint32_t value, std::vector<uint8_t>* to) { put(&value, 4, to); }

// A probe whose reference gives logits `sharpness` times the model's own, and what the metrics then are.
struct ProbeCase {
  ProbeCase(const Files& files, float sharpness, uint32_t top) {
    const std::vector<uint32_t> ids = {3, 14, 15, 92, 65, 35, 89, 79, 32, 38, 46};
    const std::vector<float> logits = files.logits_of(ids);
    edgekit::format::ProbeHeader header{};
    header.version = edgekit::format::kProbeVersion;
    header.sequences = 1;
    header.top = top;
    header.continuations = 1;
    header.continuation_tokens = 30;
    header.reference_rep4 = 0.5f;
    header.scored = ids.size() - 2;
    std::vector<uint8_t> body;
    put_u32(static_cast<uint32_t>(ids.size()), &body);
    put_u32(2, &body);
    put(ids.data(), ids.size() * 4, &body);
    for (size_t p = 2; p < ids.size(); p++) {
      score(&logits[(p - 1) * files.vocab], files.vocab, ids[p], sharpness, top, &header, &body);
    }
    put_u32(2, &body);
    put_u32(5, &body);
    put_u32(6, &body);
    put(&header, sizeof header, &bytes);
    put(body.data(), body.size(), &bytes);
    kld_mean /= static_cast<double>(header.scored);
    perplexity = std::exp(nll / static_cast<double>(header.scored));
    reference_perplexity = std::exp(header.reference_nll_sum / static_cast<double>(header.scored));
    const std::vector<uint32_t> made = files.continue_text({5, 6}, 30);
    size_t repeated = 0;
    for (size_t i = 0; i + 4 <= made.size(); i++) {
      bool seen = false;
      for (size_t j = 0; j < i; j++) seen = seen || std::equal(&made[i], &made[i] + 4, &made[j]);
      repeated += seen;
    }
    rep4 = static_cast<double>(repeated) / static_cast<double>(made.size() - 3);
  }

  void score(const float* logits, size_t vocab, uint32_t token, float sharpness, uint32_t top,
             edgekit::format::ProbeHeader* header, std::vector<uint8_t>* body) {
    std::vector<double> own(vocab), reference(vocab);
    double own_total = 0, reference_total = 0;
    for (size_t i = 0; i < vocab; i++) {
      own_total += own[i] = std::exp(double(logits[i]));
      reference_total += reference[i] = std::exp(double(logits[i]) * sharpness);
    }
    std::vector<uint32_t> order(vocab);
    for (uint32_t i = 0; i < vocab; i++) order[i] = i;
    for (size_t i = 0; i < vocab; i++) {
      for (size_t j = i + 1; j < vocab; j++) {
        if (reference[order[j]] > reference[order[i]]) std::swap(order[i], order[j]);
      }
    }
    const float logp = static_cast<float>(std::log(reference[token] / reference_total));
    put(&logp, 4, body);
    put(order.data(), top * 4, body);
    double own_rest = 1, reference_rest = 1;
    for (uint32_t i = 0; i < top; i++) {
      const double p = reference[order[i]] / reference_total, q = own[order[i]] / own_total;
      const float logp_of_top = static_cast<float>(std::log(p));
      put(&logp_of_top, 4, body);
      kld_mean += p * std::log(p / q);
      own_rest -= q;
      reference_rest -= p;
    }
    if (top < vocab) kld_mean += reference_rest * std::log(reference_rest / own_rest);
    nll -= std::log(own[token] / own_total);
    header->reference_nll_sum -= std::log(reference[token] / reference_total);
  }

  std::vector<uint8_t> bytes;
  double kld_mean = 0, nll = 0, perplexity = 0, reference_perplexity = 0, rep4 = 0;
};

bool is_near(double found, double expected) { return std::fabs(found - expected) <= 1e-4 * std::fabs(expected) + 1e-6; }

TEST(the_probe_measures_the_distance_from_the_recorded_reference) {
  Files files;
  for (const uint32_t top : {10u, static_cast<uint32_t>(files.vocab)}) {
    for (const float sharpness : {1.0f, 1.3f}) {
      const ProbeCase expected(files, sharpness, top);
      const std::string path = files.folder.write("probe", expected.bytes.data(), expected.bytes.size());
      const Failure failure = run(runner::probe, {files.model, "--probe", path, "--json", files.json});
      CHECK_THAT(failure.exit_code == 0, "%s", failure.message.c_str());
      const std::string json = read_file(files.json);
      CHECK(number_at(json, "tokens") == 9);
      CHECK_THAT(is_near(number_at(json, "kld_mean"), expected.kld_mean), "%g, not %g", number_at(json, "kld_mean"),
                 expected.kld_mean);
      CHECK(number_at(json, "kld_p99") >= number_at(json, "kld_mean"));
      CHECK(is_near(number_at(json, "perplexity"), expected.perplexity));
      CHECK(is_near(number_at(json, "reference_perplexity"), expected.reference_perplexity));
      CHECK(number_at(json, "same_top") == 1);
      CHECK_THAT(is_near(number_at(json, "rep4"), expected.rep4), "%g, not %g", number_at(json, "rep4"), expected.rep4);
      CHECK(number_at(json, "reference_rep4") == 0.5);
      const bool is_calm = expected.rep4 <= 0.75 && expected.perplexity < 2 * expected.reference_perplexity;
      CHECK(has(json, is_calm ? "\"verdict\":\"coherent\"" : "\"verdict\":\"degraded\""));
    }
  }
}

TEST(a_probe_in_the_file_is_found) {
  const Files plain;
  const ProbeCase expected(plain, 1.0f, 10);
  Files files([&](ProgramWriter* writer) { writer->probe = expected.bytes; });
  CHECK(run(runner::probe, {files.model, "--json", files.json}).exit_code == 0);
  CHECK(is_near(number_at(read_file(files.json), "perplexity"), expected.perplexity));
}

TEST(a_damaged_probe_is_refused_and_never_crashes) {
  Files files;
  const ProbeCase whole(files, 1.0f, 10);
  const auto outcome = [&](const std::vector<uint8_t>& bytes) {
    const std::string path = files.folder.write("probe", bytes.data(), bytes.size());
    return run(runner::probe, {files.model, "--probe", path, "--json", files.json}).exit_code;
  };
  for (size_t length = 0; length < whole.bytes.size(); length += length < 80 ? 1 : 37) {
    CHECK_THAT(outcome(std::vector<uint8_t>(whole.bytes.begin(), whole.bytes.begin() + static_cast<long>(length))) == 7,
               "length %zu", length);
  }
  for (size_t at = 0; at < 160; at++) {
    for (const uint8_t mask : {0x01, 0x80, 0xff}) {
      std::vector<uint8_t> flipped = whole.bytes;
      flipped[at] ^= mask;
      // Continuations are the one thing that can be asked for without end; a context bounds them.
      const int code = outcome(flipped);
      CHECK_THAT(code == 0 || code == 7 || code == 3, "byte %zu: %d", at, code);
    }
  }
}

TEST(a_calibration_is_remembered_beside_the_model_and_gives_way_to_what_is_asked) {
  Files files([](ProgramWriter*) {}, 32);
  const std::string path = files.folder.name("model.edge.calibration");
  const std::vector<std::string> words = {files.model, "--tokens", "5", "-n", "3", "--json", files.json};
  CHECK(run(runner::generate, words).exit_code == 0);
  CHECK(has(read_file(files.json), "\"decode_threads_from\":\"plan\",\"prefill_threads_from\":\"plan\""));

  const Failure failure = run(runner::calibrate, {files.model, "--json", files.json});
  if (runner::read_machine().emulated) {
    CHECK(failure.exit_code == runner::kUsage && has(failure.message, "an emulated machine cannot be calibrated"));
    CHECK(read_file(path).empty());
    return;
  }
  CHECK_THAT(failure.exit_code == 0, "%s", failure.message.c_str());
  const std::string report = read_file(files.json);
  CHECK(has(report, "\"test\":\"tg") && has(report, "\"test\":\"pp") && has(report, "\"chosen\":true"));
  const double decode = number_at(report, "decode_threads");
  CHECK(has(read_file(path), "\ndecode_threads " + std::to_string(static_cast<int>(decode)) + "\n"));

  CHECK(run(runner::generate, words).exit_code == 0);
  CHECK(has(read_file(files.json), "\"decode_threads_from\":\"calibrated\",\"prefill_threads_from\":\"calibrated\""));
  CHECK(number_at(read_file(files.json), "decode_threads") == decode);
  std::vector<std::string> asked = words;
  asked.insert(asked.end(), {"--threads", "3"});
  CHECK(run(runner::generate, asked).exit_code == 0);
  CHECK(has(read_file(files.json), "\"decode_threads_from\":\"asked\""));
  CHECK(number_at(read_file(files.json), "decode_threads") == 3);
}

TEST(a_calibration_that_cannot_be_used_is_one_warning) {
  Files files([](ProgramWriter*) {}, 32);
  files.folder.write("model.edge.calibration", "no calibration", 14);
  CHECK(run(runner::generate, {files.model, "--tokens", "5", "-n", "3", "--json", files.json}).exit_code == 0);
  const std::string report = read_file(files.json);
  const std::string warning = "is not one that this edgekit writes, and was ignored";
  CHECK(has(report, warning) && report.find(warning) == report.rfind(warning));
  CHECK(has(report, "\"decode_threads_from\":\"plan\""));
}

TEST(json_is_valid_whatever_text_it_holds) {
  runner::Json json;
  json.open_object();
  json.member("a\"b", "back\\slash\n\x01\x7f");
  json.member("bad", std::string_view("\xff\xc0\xafok\xed\xa0\x80\xe2\x82", 10));
  json.member("good", "\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80");
  json.member("nan", NAN).member("half", 0.5).member("large", UINT64_MAX).member("yes", true);
  json.key("none").null().list("numbers", std::vector<uint32_t>{1, 2}).close_object();
  const std::string wrong = "\xef\xbf\xbd";
  std::string expected = R"({"a\"b":"back\\slash\u000a\u0001\u007f","bad":")";
  expected += wrong + wrong + wrong + "ok" + wrong + wrong + wrong + wrong + wrong;
  expected += "\",\"good\":\"\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\",";
  expected += R"("nan":null,"half":0.5,"large":18446744073709551615,"yes":true,"none":null,"numbers":[1,2]})";
  CHECK_THAT(json.text() == expected, "%s", json.text().c_str());
}

}  // namespace
}  // namespace edgekit::testing

EDGEKIT_TEST_MAIN
