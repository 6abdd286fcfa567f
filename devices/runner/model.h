// A program file mapped into memory, ready to run.
#pragma once

#include <memory>
#include <string>

#include "arguments.h"
#include "edgekit/program.h"
#include "ops/ops.h"
#include "tokenizer/tokenizer.h"

namespace edgekit::runner {

class Model {
 public:
  // Maps and checks the file. Throws Failure.
  explicit Model(const std::string& path);
  ~Model();
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  const std::string& path() const { return path_; }
  const edgekit_program* program() const { return program_; }
  const edgekit_program_info& info() const { return *edgekit_program_get_info(program_); }
  double load_seconds() const { return load_seconds_; }

  // Checked and opened when first asked for; Failure if the file has none.
  const tokenizer::Tokenizer& tokenizer();

  bool ends_text(uint32_t token) const;

  // Asks the system to have the weights in memory soon.
  void expect_use() const;

 private:
  std::string path_;
  void* data_ = nullptr;
  size_t bytes_ = 0;
  edgekit_program* program_ = nullptr;
  tokenizer::Tokenizer tokenizer_;
  bool tokenizer_open_ = false;
  double load_seconds_ = 0;
};

// Where a number of threads comes from: the command line, the calibration beside the model, or the plan.
enum class ThreadsFrom { kAsked, kCalibrated, kPlan };

// A session that throws Failure instead of returning a status. Numbers of threads that are not asked for are those of the
// calibration, if there is one.
class Session {
 public:
  Session(const Model& model, edgekit_session_options options);
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  void forward(const uint32_t* tokens, size_t count, float* logits, size_t logits_rows);
  void reset(uint32_t position);
  void set_threads(uint32_t decode, uint32_t prefill);

  uint32_t position() const { return edgekit_session_position(session_); }
  uint32_t context() const { return edgekit_session_context(session_); }
  uint32_t decode_threads() const { return edgekit_session_decode_threads(session_); }
  uint32_t prefill_threads() const { return edgekit_session_prefill_threads(session_); }
  edgekit_kv_format kv_format() const { return edgekit_session_kv_format(session_); }
  ThreadsFrom decode_threads_from() const { return decode_threads_from_; }
  ThreadsFrom prefill_threads_from() const { return prefill_threads_from_; }

  // Why the calibration beside the model was ignored; empty if it was not.
  const std::string& calibration_doubt() const { return calibration_doubt_; }

  edgekit_memory memory() const { return edgekit_session_memory(session_); }
  uint64_t products(const edgekit_gemm_kernel& kernel) const { return edgekit_session_products(session_, &kernel); }
  uint64_t attended_bytes(uint32_t position) const { return edgekit_session_attended_bytes(session_, position); }
  double create_seconds() const { return create_seconds_; }

 private:
  void calibrate(const Model& model, edgekit_session_options* options);

  std::string path_;
  std::string calibration_doubt_;
  ThreadsFrom decode_threads_from_;
  ThreadsFrom prefill_threads_from_;
  edgekit_session* session_ = nullptr;
  double create_seconds_ = 0;
};

// --kv; absent: as the program says.
edgekit_kv_format read_kv_format(const Arguments& arguments);

// "f16" or "q8".
const char* name_of(edgekit_kv_format format);

// --threads, --prefill-threads, --context and --kv as session options.
edgekit_session_options read_session_options(const Arguments& arguments, const Model& model);

// The operations that sampling uses on this CPU.
const ops::Ops& ops_here();

// The whole of a file, or of stdin for "-", at most `most_bytes`. Throws Failure.
std::string read_whole(const std::string& path, size_t most_bytes);

}  // namespace edgekit::runner
