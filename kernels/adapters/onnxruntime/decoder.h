// The operator edgekit::Decoder: a whole compiled program as one node, run on ONNX Runtime's threads.
//
//   program             uint8 [bytes]: model.edge; a constant, which ONNX Runtime maps from the file and we use in place
//   input_ids           int64 [1, s]
//   position            int64 [1]: of the first token; what was read from there on is forgotten
//   num_logits_to_keep  int64 [1]: of the last rows; 0 is all
//   logits              float32 [1, rows, vocab]
//
// The attribute context is the number of tokens it has room for. It holds one sequence, its keys and values. Calls at the same time follow one another.
#pragma once

#include <pthread.h>

#include <memory>

#include "edgekit/program.h"
#include "ort_abi.h"

namespace edgekit::ort {

class Decoder {
 public:
  ~Decoder();
  Decoder(const Decoder&) = delete;
  Decoder& operator=(const Decoder&) = delete;

  // `threads` 0: as many as the program's plan advises.
  static Status* create(const Api& api, const KernelInfo* info, uint32_t threads, Decoder** decoder);

  Status* compute(KernelContext* context);

 private:
  struct Call;

  explicit Decoder(const Api& api) : api_(api) {}
  Status* open(const KernelInfo* info, uint32_t threads);
  Status* read_call(const KernelContext* context, Call* call) const;
  Status* read_tokens(const Call& call);
  Status* refuse(ErrorCode code, const char* format, ...) const __attribute__((format(printf, 3, 4)));
  Status* pass_on(edgekit_status status, const edgekit_error& error) const;
  static void execute(void* decoder, uint32_t count, void (*body)(void*, uint32_t), void* argument);

  const Api api_;
  edgekit_program* program_ = nullptr;
  edgekit_session* session_ = nullptr;
  std::unique_ptr<uint32_t[]> tokens_;      // [context]
  const KernelContext* context_ = nullptr;  // of the call at work
  pthread_mutex_t one_call_ = PTHREAD_MUTEX_INITIALIZER;
};

}  // namespace edgekit::ort
