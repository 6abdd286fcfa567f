// Loads a compiled program (`model.edge`, kernels/program/format.h) and runs it: threads, KV cache, activations.
//
// A program is read-only and may be shared by any number of sessions; a session is one sequence of tokens and belongs to
// one caller at a time. Logits do not depend on the ISA, on the number of threads, or on how the tokens were divided
// into calls: they are the same to the last bit.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "edgekit/gemm.h"
#include "edgekit/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct edgekit_program edgekit_program;
typedef struct edgekit_session edgekit_session;

#define EDGEKIT_NO_TOKEN UINT32_MAX
#define EDGEKIT_MOST_THREADS 256u  // of a session

// How keys and values are kept. q8: int8 codes, and an f32 scale for each position's key and one for its value.
typedef enum edgekit_kv_format {
  EDGEKIT_KV_AS_PLANNED = 0,  // what the program says
  EDGEKIT_KV_F16 = 1,
  EDGEKIT_KV_Q8 = 2,
} edgekit_kv_format;

typedef struct edgekit_program_info {
  uint32_t layers;
  uint32_t hidden;
  uint32_t heads;
  uint32_t kv_heads;
  uint32_t head_dim;
  uint32_t intermediate;
  uint32_t vocab;
  uint32_t context;   // longest context the model was made for
  uint32_t max_rows;  // tokens of prefill computed at once
  uint32_t decode_threads;  // what the plan advises
  uint32_t prefill_threads;
  uint32_t bos;  // EDGEKIT_NO_TOKEN: none
  uint32_t eos_count;
  uint32_t eos[8];
  uint64_t required_features;  // edgekit/cpu.h: of the ISA the plan was made for
  edgekit_kv_format kv_format;  // f16 or q8
  uint64_t file_bytes;
  uint64_t weights_bytes;    // the weights section
  uint64_t bytes_per_token;  // weights read to decode one token (an embedding row, not the table)
  const uint8_t* tokenizer;  // null if the file has none
  size_t tokenizer_bytes;
  const uint8_t* probe;  // null if the file has none
  size_t probe_bytes;
  const uint8_t* weights;
} edgekit_program_info;

// One section as the file's table gives it.
typedef struct edgekit_section_info {
  const char* name;
  uint64_t offset;
  uint64_t bytes;
  uint32_t crc;
} edgekit_section_info;

// One kernel slot of the program: what the plan chose and what this CPU runs.
typedef struct edgekit_kernel_use {
  const char* planned;
  const char* runs;  // differs from `planned` if the CPU lacks a feature of it or this build does not have it
} edgekit_kernel_use;

// Checks the whole file but the weights (their bytes are not touched) and returns a program that refers to `data`: at
// least 64-byte aligned, unchanged until the program is closed. Prefer a read-only mmap of the file.
edgekit_status edgekit_program_open(const uint8_t* data, size_t bytes, edgekit_program** program, edgekit_error* error);
void edgekit_program_close(edgekit_program* program);

const edgekit_program_info* edgekit_program_get_info(const edgekit_program* program);
const edgekit_section_info* edgekit_program_sections(const edgekit_program* program, size_t* count);
const edgekit_kernel_use* edgekit_program_kernels(const edgekit_program* program, size_t* count);

// True if some operator runs another kernel than the planned one.
int edgekit_program_fell_back(const edgekit_program* program);

// Reads the weights and compares their checksum with the file's.
edgekit_status edgekit_verify_weights(const edgekit_program* program, edgekit_error* error);

// Threads of the host that a session is run by. Calls body(argument, member) once for every member below `count`, on
// any threads, side by side or one after another, and returns when all calls have: none of them waits for one that has
// not begun. A session uses it for as long as edgekit_session_forward runs.
typedef struct edgekit_executor {
  void (*execute)(void* context, uint32_t count, void (*body)(void* argument, uint32_t member), void* argument);
  void* context;
} edgekit_executor;

typedef struct edgekit_session_options {
  uint32_t context;          // positions of KV cache; 0: the program's context
  uint32_t decode_threads;   // 0: what the plan advises, at most the CPUs online
  uint32_t prefill_threads;  // 0: the same
  uint32_t spin_microseconds;  // wait actively so long at a barrier before sleeping; UINT32_MAX: 50
  uint32_t keep_to_fast_cpus;  // not 0: the n-th of the threads it starts runs on CPUs as fast as the n-th fastest
  edgekit_kv_format kv_format;
  edgekit_executor executor;  // execute null: the session starts threads of its own
} edgekit_session_options;

typedef struct edgekit_memory {
  uint64_t kv_bytes;
  uint64_t arena_bytes;  // activations and scratch of every thread
} edgekit_memory;

edgekit_status edgekit_session_create(const edgekit_program* program, const edgekit_session_options* options,
                                      edgekit_session** session, edgekit_error* error);
void edgekit_session_free(edgekit_session* session);

edgekit_memory edgekit_session_memory(const edgekit_session* session);
uint32_t edgekit_session_context(const edgekit_session* session);
edgekit_kv_format edgekit_session_kv_format(const edgekit_session* session);  // f16 or q8
uint32_t edgekit_session_position(const edgekit_session* session);  // tokens in the cache
uint32_t edgekit_session_decode_threads(const edgekit_session* session);
uint32_t edgekit_session_prefill_threads(const edgekit_session* session);

// Forgets every token from `position` on; positions not yet reached are refused.
edgekit_status edgekit_session_reset(edgekit_session* session, uint32_t position, edgekit_error* error);

// Appends `count` tokens and writes the logits of the last `logits_rows` of them: logits[logits_rows][vocab], where row
// r is the distribution of the token after the (count - logits_rows + r)-th. Rows may be 0; `logits` may then be null.
edgekit_status edgekit_session_forward(edgekit_session* session, const uint32_t* tokens, size_t count, float* logits,
                                       size_t logits_rows, edgekit_error* error);

// Thread counts of the calls to come; at most those the session was created with.
edgekit_status edgekit_session_set_threads(edgekit_session* session, uint32_t decode_threads, uint32_t prefill_threads,
                                           edgekit_error* error);

// How many matrices `kernel` has multiplied in this session, a matrix once for all the rows computed together.
uint64_t edgekit_session_products(const edgekit_session* session, const edgekit_gemm_kernel* kernel);

// Bytes of keys and values that a token at `position` attends to, its own included, in all layers.
uint64_t edgekit_session_attended_bytes(const edgekit_session* session, uint32_t position);

#ifdef __cplusplus
}
#endif
