#include "decoder.h"

#include <stdarg.h>
#include <stdio.h>

#include <new>

namespace edgekit::ort {
namespace {

constexpr size_t kMostRank = 4;

// A tensor of a node: where its elements are, and how many in each dimension.
struct Tensor {
  const void* data = nullptr;
  size_t rank = 0;
  int64_t dimensions[kMostRank] = {};

  bool is_one_number() const { return rank == 1 && dimensions[0] == 1; }
  int64_t number(size_t i) const { return static_cast<const int64_t*>(data)[i]; }
};

Status* read_tensor(const Api& api, const Value* value, Tensor* tensor) {
  Shape* shape = nullptr;
  if (Status* status = api.GetTensorTypeAndShape(value, &shape)) {
    return status;
  }
  Status* status = api.GetDimensionsCount(shape, &tensor->rank);
  if (status == nullptr && tensor->rank <= kMostRank) {
    status = api.GetDimensions(shape, tensor->dimensions, tensor->rank);
  }
  api.ReleaseTensorTypeAndShapeInfo(shape);
  if (status == nullptr) {
    // The only accessor of version 17 wants a value that may be changed.
    status = api.GetTensorMutableData(const_cast<Value*>(value), const_cast<void**>(&tensor->data));
  }
  return status;
}

class Lock {
 public:
  explicit Lock(pthread_mutex_t* mutex) : mutex_(mutex) { pthread_mutex_lock(mutex_); }
  ~Lock() { pthread_mutex_unlock(mutex_); }
  Lock(const Lock&) = delete;
  Lock& operator=(const Lock&) = delete;

 private:
  pthread_mutex_t* mutex_;
};

}  // namespace

// What one call of the node was given.
struct Decoder::Call {
  Tensor ids;
  size_t count = 0;
  int64_t position = 0;
  int64_t rows = 0;
};

Status* Decoder::refuse(ErrorCode code, const char* format, ...) const {
  char message[sizeof(edgekit_error)];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
  return api_.CreateStatus(code, message);
}

Status* Decoder::pass_on(edgekit_status status, const edgekit_error& error) const {
  switch (status) {
    case EDGEKIT_OK:
      return nullptr;
    case EDGEKIT_DAMAGED:
      return refuse(ErrorCode::kInvalidGraph, "%s", error.message);
    case EDGEKIT_UNSUPPORTED:
      return refuse(ErrorCode::kNotImplemented, "%s", error.message);
    case EDGEKIT_BAD_ARGUMENT:
      return refuse(ErrorCode::kInvalidArgument, "%s", error.message);
    case EDGEKIT_NO_MEMORY:
    case EDGEKIT_IO:
      break;
  }
  return refuse(ErrorCode::kFail, "%s", error.message);
}

Status* Decoder::create(const Api& api, const KernelInfo* info, uint32_t threads, Decoder** decoder) {
  *decoder = nullptr;
  std::unique_ptr<Decoder> made(new (std::nothrow) Decoder(api));
  if (made == nullptr) {
    return api.CreateStatus(ErrorCode::kFail, "there is no memory for a decoder");
  }
  if (Status* status = made->open(info, threads)) {
    return status;
  }
  *decoder = made.release();
  return nullptr;
}

Decoder::~Decoder() {
  edgekit_session_free(session_);
  edgekit_program_close(program_);
}

Status* Decoder::open(const KernelInfo* info, uint32_t threads) {
  int is_constant = 0;
  const Value* value = nullptr;
  if (Status* status = api_.KernelInfoGetConstantInput_tensor(info, 0, &is_constant, &value)) {
    return status;
  }
  if (!is_constant || value == nullptr) {
    return refuse(ErrorCode::kInvalidGraph, "the program of an edgekit::Decoder has to be a constant");
  }
  Tensor program;
  if (Status* status = read_tensor(api_, value, &program)) {
    return status;
  }
  if (program.rank != 1) {
    return refuse(ErrorCode::kInvalidGraph, "the program has %zu dimensions instead of 1", program.rank);
  }
  int64_t context = 0;
  if (Status* status = api_.KernelInfoGetAttribute_int64(info, "context", &context)) {
    return status;
  }
  if (context < 1 || context > UINT32_MAX) {
    return refuse(ErrorCode::kInvalidGraph, "the context of an edgekit::Decoder cannot be %lld tokens",
                  static_cast<long long>(context));
  }
  edgekit_error error{};
  edgekit_status status = edgekit_program_open(static_cast<const uint8_t*>(program.data),
                                               size_t(program.dimensions[0]), &program_, &error);
  if (status != EDGEKIT_OK) {
    return pass_on(status, error);
  }
  edgekit_session_options options{};
  options.context = uint32_t(context);
  options.decode_threads = threads;
  options.prefill_threads = threads;
  options.spin_microseconds = UINT32_MAX;
  options.executor = {execute, this};
  status = edgekit_session_create(program_, &options, &session_, &error);
  if (status != EDGEKIT_OK) {
    return pass_on(status, error);
  }
  tokens_.reset(new (std::nothrow) uint32_t[options.context]);
  if (tokens_ == nullptr) {
    return refuse(ErrorCode::kFail, "there is no memory for %u tokens", options.context);
  }
  return nullptr;
}

// The runtime calls each member on one of its threads, or, having none free, one after another on this one.
void Decoder::execute(void* decoder, uint32_t count, void (*body)(void*, uint32_t), void* argument) {
  struct Work {
    void (*body)(void*, uint32_t);
    void* argument;
  } work = {body, argument};
  const auto call = [](void* of, size_t member) {
    static_cast<Work*>(of)->body(static_cast<Work*>(of)->argument, uint32_t(member));
  };
  const auto& self = *static_cast<Decoder*>(decoder);
  if (Status* status = self.api_.KernelContext_ParallelFor(self.context_, call, count, count, &work)) {
    self.api_.ReleaseStatus(status);  // nothing was called
    for (uint32_t member = 0; member < count; ++member) {
      body(argument, member);
    }
  }
}

Status* Decoder::read_call(const KernelContext* context, Call* call) const {
  Tensor position;
  Tensor rows;
  Tensor* const tensors[] = {&call->ids, &position, &rows};
  for (size_t i = 0; i < 3; ++i) {
    const Value* value = nullptr;
    if (Status* status = api_.KernelContext_GetInput(context, i + 1, &value)) {
      return status;
    }
    if (Status* status = read_tensor(api_, value, tensors[i])) {
      return status;
    }
  }
  const int64_t* shape = call->ids.dimensions;
  if (call->ids.rank != 2 || shape[0] != 1 || shape[1] < 1) {
    return refuse(ErrorCode::kInvalidArgument, "input_ids has to be [1, s]: one sequence of at least one token");
  }
  if (!position.is_one_number() || !rows.is_one_number()) {
    return refuse(ErrorCode::kInvalidArgument, "position and num_logits_to_keep have to be one number each: [1]");
  }
  call->count = size_t(shape[1]);
  call->position = position.number(0);
  call->rows = rows.number(0);
  return nullptr;
}

// Checks the call as a whole before it changes anything.
Status* Decoder::read_tokens(const Call& call) {
  const uint32_t read = edgekit_session_position(session_);
  if (call.position < 0 || call.position > read) {
    return refuse(ErrorCode::kInvalidArgument, "position %lld was asked for and %u tokens were read",
                  static_cast<long long>(call.position), read);
  }
  const uint32_t context = edgekit_session_context(session_);
  if (call.count > context - size_t(call.position)) {
    return refuse(ErrorCode::kInvalidArgument, "%zu tokens do not fit after %lld in a context of %u", call.count,
                  static_cast<long long>(call.position), context);
  }
  if (call.rows < 0 || size_t(call.rows) > call.count) {
    return refuse(ErrorCode::kInvalidArgument, "logits of %lld rows were asked for and %zu are computed",
                  static_cast<long long>(call.rows), call.count);
  }
  const uint32_t vocab = edgekit_program_get_info(program_)->vocab;
  for (size_t i = 0; i < call.count; ++i) {
    const int64_t token = call.ids.number(i);
    if (token < 0 || token >= vocab) {
      return refuse(ErrorCode::kInvalidArgument, "token %lld is not in the vocabulary of %u",
                    static_cast<long long>(token), vocab);
    }
    tokens_[i] = uint32_t(token);
  }
  return nullptr;
}

Status* Decoder::compute(KernelContext* context) {
  Call call;
  if (Status* status = read_call(context, &call)) {
    return status;
  }
  const Lock lock(&one_call_);
  if (Status* status = read_tokens(call)) {
    return status;
  }
  const size_t rows = call.rows > 0 ? size_t(call.rows) : call.count;
  const int64_t dimensions[] = {1, int64_t(rows), int64_t(edgekit_program_get_info(program_)->vocab)};
  Value* output = nullptr;
  void* logits = nullptr;
  Status* failed = api_.KernelContext_GetOutput(context, 0, dimensions, 3, &output);
  if (failed == nullptr) {
    failed = api_.GetTensorMutableData(output, &logits);
  }
  if (failed != nullptr) {
    return failed;
  }
  edgekit_error error{};
  edgekit_status status = edgekit_session_reset(session_, uint32_t(call.position), &error);
  if (status == EDGEKIT_OK) {
    context_ = context;
    status = edgekit_session_forward(session_, tokens_.get(), call.count, static_cast<float*>(logits), rows, &error);
  }
  return pass_on(status, error);
}

}  // namespace edgekit::ort
