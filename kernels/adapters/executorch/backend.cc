// EdgekitBackend: an ExecuTorch delegate whose payload is a compiled program (model.edge), run by edgekit's kernels.
//
//   tokens     int64 [1, s]
//   input_pos  int64 [1] or [s]   where the tokens go; what the cache holds from there on is forgotten
//   logits     float [1, vocab] of the last token, or [1, s, vocab] of all
//
// Keys and values stay in the delegate, so a loaded method is one sequence and belongs to one caller at a time. The
// compile spec `context`, uint32, says how many positions it holds.
#include <executorch/runtime/backend/interface.h>
#include <executorch/runtime/core/exec_aten/util/tensor_util.h>

#include <cinttypes>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include "edgekit/program.h"

namespace {

using executorch::aten::ScalarType;
using executorch::aten::SizesType;
using executorch::aten::Tensor;
using executorch::runtime::ArrayRef;
using executorch::runtime::BackendExecutionContext;
using executorch::runtime::BackendInitContext;
using executorch::runtime::CompileSpec;
using executorch::runtime::DelegateHandle;
using executorch::runtime::Error;
using executorch::runtime::EValue;
using executorch::runtime::FreeableBuffer;
using executorch::runtime::Result;
using executorch::runtime::Span;

constexpr size_t kAlign = 64;  // of a program in memory

thread_local edgekit_error last_refusal;

// Logs a sentence and keeps it for edgekit_executorch_take_refusal.
__attribute__((format(printf, 2, 3))) Error refuse(Error error, const char* format, ...) {
  va_list values;
  va_start(values, format);
  vsnprintf(last_refusal.message, sizeof last_refusal.message, format, values);
  va_end(values);
  ET_LOG(Error, "edgekit: %s", last_refusal.message);
  return error;
}

Error error_of(edgekit_status status) {
  switch (status) {
    case EDGEKIT_OK:
      return Error::Ok;
    case EDGEKIT_UNSUPPORTED:
      return Error::DelegateInvalidCompatibility;
    case EDGEKIT_NO_MEMORY:
      return Error::DelegateMemoryAllocationFailed;
    case EDGEKIT_BAD_ARGUMENT:
      return Error::InvalidArgument;
    case EDGEKIT_DAMAGED:
    case EDGEKIT_IO:
      return Error::InvalidProgram;
  }
  return Error::Internal;
}

Error check(edgekit_status status, const edgekit_error& error) {
  return status == EDGEKIT_OK ? Error::Ok : refuse(error_of(status), "%s", error.message);
}

struct Free {
  void operator()(edgekit_program* program) const { edgekit_program_close(program); }
  void operator()(edgekit_session* session) const { edgekit_session_free(session); }
};

struct Model {
  std::unique_ptr<edgekit_program, Free> program;
  std::unique_ptr<edgekit_session, Free> session;
  std::unique_ptr<uint32_t[]> tokens;  // room for a whole context
};

// The number under `key`; 0 if there is none.
Result<uint32_t> read_spec(ArrayRef<CompileSpec> specs, const char* key) {
  uint32_t value = 0;
  for (const CompileSpec& spec : specs) {
    if (strcmp(spec.key, key) != 0) {
      continue;
    }
    if (spec.value.nbytes != sizeof value) {
      return refuse(Error::InvalidProgram, "the compile spec '%s' has %zu bytes instead of %zu", key,
                    spec.value.nbytes, sizeof value);
    }
    memcpy(&value, spec.value.buffer, sizeof value);
  }
  return value;
}

// The option `threads` of the method's loading, else EDGEKIT_THREADS; 0, what the program advises, if there is neither.
Result<uint32_t> read_threads(BackendInitContext& context) {
  const Result<int> option = context.get_runtime_spec<int>("threads");
  long threads = 0;
  if (option.ok()) {
    threads = *option;
  } else if (option.error() != Error::NotFound) {
    threads = -1;
  } else if (const char* text = getenv("EDGEKIT_THREADS")) {
    char* end = nullptr;
    threads = strtol(text, &end, 10);
    if (end == text || *end != '\0') {
      threads = -1;
    }
  }
  if (threads < 0 || threads > long{EDGEKIT_MOST_THREADS}) {
    return refuse(Error::InvalidArgument, "threads are a number from 0 to %u", EDGEKIT_MOST_THREADS);
  }
  return uint32_t(threads);
}

// The program's bytes as the loader gives them: they are used in place.
Result<const uint8_t*> aligned(const FreeableBuffer& processed) {
  const Result<const void*> data = processed.data_safe();
  if (!data.ok()) {
    return refuse(data.error(), "the program is in no memory of this processor");
  }
  if (reinterpret_cast<uintptr_t>(*data) % kAlign != 0) {
    return refuse(Error::InvalidProgram,
                  "the program does not lie at a multiple of %zu bytes: load the file with a loader that maps it", kAlign);
  }
  return static_cast<const uint8_t*>(*data);
}

Error open(BackendInitContext& context, const FreeableBuffer& processed, ArrayRef<CompileSpec> specs, Model* model) {
  const Result<uint32_t> positions = read_spec(specs, "context");
  const Result<uint32_t> threads = read_threads(context);
  if (!positions.ok() || !threads.ok()) {
    return positions.ok() ? threads.error() : positions.error();
  }
  const Result<const uint8_t*> bytes = aligned(processed);
  if (!bytes.ok()) {
    return bytes.error();
  }
  edgekit_error error;
  edgekit_program* program = nullptr;
  if (const Error found = check(edgekit_program_open(*bytes, processed.size(), &program, &error), error); found != Error::Ok) {
    return found;
  }
  model->program.reset(program);
  edgekit_session_options options = {};
  options.context = *positions;
  options.decode_threads = options.prefill_threads = *threads;
  options.spin_microseconds = UINT32_MAX;
  edgekit_session* session = nullptr;
  const Error found = check(edgekit_session_create(program, &options, &session, &error), error);
  if (found != Error::Ok) {
    return found;
  }
  model->session.reset(session);
  model->tokens.reset(new (std::nothrow) uint32_t[edgekit_session_context(session)]);
  if (model->tokens == nullptr) {
    return refuse(Error::DelegateMemoryAllocationFailed, "there is no memory for a session");
  }
  return Error::Ok;
}

bool is_row(const Tensor& tensor, ssize_t dims) {
  return tensor.scalar_type() == ScalarType::Long && tensor.dim() == dims && (dims == 1 || tensor.size(0) == 1);
}

// The position of the first token; the others must follow.
Result<uint32_t> read_position(const Tensor& input_pos, ssize_t count, uint32_t context) {
  const ssize_t given = input_pos.numel();
  if (!is_row(input_pos, 1) || (given != 1 && given != count)) {
    return refuse(Error::InvalidArgument, "input_pos is int64 [1] or one for each of %zd tokens", count);
  }
  const int64_t* positions = input_pos.const_data_ptr<int64_t>();
  const int64_t first = positions[0];
  if (first < 0 || first > int64_t{context}) {
    return refuse(Error::InvalidArgument, "position %" PRId64 " is outside the context of %u", first, context);
  }
  for (ssize_t i = 1; i < given; ++i) {
    if (positions[i] != first + i) {
      return refuse(Error::InvalidArgument, "input_pos does not rise by one from %" PRId64, first);
    }
  }
  return uint32_t(first);
}

Error read_tokens(const Tensor& given, uint32_t context, uint32_t* tokens) {
  if (!is_row(given, 2) || given.numel() == 0 || given.numel() > ssize_t(context)) {
    return refuse(Error::InvalidArgument, "tokens are int64 [1, 1 to %u]", context);
  }
  const int64_t* values = given.const_data_ptr<int64_t>();
  for (ssize_t i = 0; i < given.numel(); ++i) {
    if (values[i] < 0 || values[i] > int64_t{UINT32_MAX}) {
      return refuse(Error::InvalidArgument, "token %" PRId64 " is not in the vocabulary", values[i]);
    }
    tokens[i] = uint32_t(values[i]);
  }
  return Error::Ok;
}

// Gives `logits` its size for `count` tokens and returns how many of them it has a row for.
Result<size_t> resize(Tensor& logits, ssize_t count, uint32_t vocab) {
  const bool has_all = logits.dim() == 3;
  if (logits.scalar_type() != ScalarType::Float || (!has_all && logits.dim() != 2)) {
    return refuse(Error::InvalidProgram, "logits are float [1, %u] or [1, s, %u]", vocab, vocab);
  }
  const SizesType last[] = {1, SizesType(vocab)};
  const SizesType all[] = {1, SizesType(count), SizesType(vocab)};
  const auto sizes = has_all ? ArrayRef<SizesType>(all, 3) : ArrayRef<SizesType>(last, 2);
  if (executorch::runtime::resize_tensor(logits, sizes) != Error::Ok) {
    return refuse(Error::InvalidArgument, "the method has no room for the logits of %zd tokens", count);
  }
  return has_all ? size_t(count) : 1;
}

Error run(Model* model, const Tensor& tokens, const Tensor& input_pos, Tensor& logits) {
  edgekit_session* session = model->session.get();
  const uint32_t context = edgekit_session_context(session);
  if (const Error found = read_tokens(tokens, context, model->tokens.get()); found != Error::Ok) {
    return found;
  }
  const Result<uint32_t> position = read_position(input_pos, tokens.numel(), context);
  if (!position.ok()) {
    return position.error();
  }
  const Result<size_t> rows = resize(logits, tokens.numel(), edgekit_program_get_info(model->program.get())->vocab);
  if (!rows.ok()) {
    return rows.error();
  }
  edgekit_error error;
  if (const Error found = check(edgekit_session_reset(session, *position, &error), error); found != Error::Ok) {
    return found;
  }
  return check(edgekit_session_forward(session, model->tokens.get(), size_t(tokens.numel()),
                                       logits.mutable_data_ptr<float>(), *rows, &error),
               error);
}

class EdgekitBackend final : public executorch::runtime::BackendInterface {
 public:
  bool is_available() const override { return true; }

  Result<DelegateHandle*> init(BackendInitContext& context, FreeableBuffer* processed,
                               ArrayRef<CompileSpec> specs) const override {
    std::unique_ptr<Model> model(new (std::nothrow) Model());
    if (model == nullptr) {
      return refuse(Error::DelegateMemoryAllocationFailed, "there is no memory for a model");
    }
    if (const Error found = open(context, *processed, specs, model.get()); found != Error::Ok) {
      return found;
    }
    return static_cast<DelegateHandle*>(model.release());
  }

  Error execute(BackendExecutionContext&, DelegateHandle* handle, Span<EValue*> args) const override {
    if (args.size() != 3 || !args[0]->isTensor() || !args[1]->isTensor() || !args[2]->isTensor()) {
      return refuse(Error::InvalidProgram, "a call has %zu values; it takes tokens and input_pos and gives logits",
                    args.size());
    }
    return run(static_cast<Model*>(handle), args[0]->toTensor(), args[1]->toTensor(), args[2]->toTensor());
  }

  void destroy(DelegateHandle* handle) const override { delete static_cast<Model*>(handle); }
};

EdgekitBackend backend;

[[maybe_unused]] const Error registered = executorch::runtime::register_backend({"EdgekitBackend", &backend});

}  // namespace

// Why the last refused call of this thread was refused; empty if it was asked for since, or there was none.
extern "C" __attribute__((visibility("default"))) const char* edgekit_executorch_take_refusal() {
  thread_local edgekit_error taken;
  taken = last_refusal;
  last_refusal.message[0] = '\0';
  return taken.message;
}
