// Sessions: their memory, and the division of a call into chunks of rows.
#include "program/session.h"

#include <string.h>

#include <algorithm>
#include <new>

#include "program/refuse.h"

namespace edgekit {
namespace {

constexpr uint32_t kDefaultSpinMicroseconds = 50;
constexpr size_t kLine = 64;

uint32_t choose_threads(uint32_t asked, uint32_t advised, uint32_t cpus) {
  if (asked > 0) {
    return asked;
  }
  return advised > 0 ? std::min(advised, cpus) : std::min(cpus, EDGEKIT_MOST_THREADS);
}

// Hands out consecutive pieces of memory; with a null start it only counts.
class Carver {
 public:
  explicit Carver(uint8_t* start) : start_(start) {}

  template <typename T>
  T* take(size_t count) {
    T* piece = start_ == nullptr ? nullptr : reinterpret_cast<T*>(start_ + used_);
    used_ += round_up(count * sizeof(T), kLine);
    return piece;
  }

  size_t used() const { return used_; }

 private:
  uint8_t* start_;
  size_t used_ = 0;
};

struct Extents {
  size_t longest_row = 0;
  size_t one_row_bytes = 0;   // activations of one row, all forms of the neediest operator
  size_t all_rows_bytes = 0;  // of max_rows rows
};

Extents measure_steps(const edgekit_program& program) {
  Extents extents;
  extents.longest_row = program.info.hidden;
  for (size_t i = 0; i < program.step_count; ++i) {
    const Step& step = program.steps[i];
    size_t one = 0;
    size_t all = 0;
    for (size_t f = 0; f < step.forms; ++f) {
      Activations unused;
      extents.longest_row = std::max(extents.longest_row, step.form[f].k);
      one += lay_out_activations(step.form[f], 1, nullptr, &unused);
      all += lay_out_activations(step.form[f], program.info.max_rows, nullptr, &unused);
    }
    extents.one_row_bytes = std::max(extents.one_row_bytes, one);
    extents.all_rows_bytes = std::max(extents.all_rows_bytes, all);
  }
  return extents;
}

size_t lay_out_shared(edgekit_session* session, const Extents& extents, uint8_t* start) {
  const edgekit_program_info& info = session->program->info;
  const size_t angles = session->program->rope_count * info.max_rows * (info.head_dim / 2);
  const size_t blocks = (session->context + ops::kBlock - 1) / ops::kBlock;
  Carver carver(start);
  session->activations_memory = carver.take<uint8_t>(extents.all_rows_bytes);
  session->cosine = carver.take<float>(angles);
  session->sine = carver.take<float>(angles);
  session->partials = carver.take<float>(info.heads * blocks * session->partial_stride);
  session->blocks_done = carver.take<std::atomic<uint32_t>>(info.kv_heads * kCounterStride);
  return carver.used();
}

size_t lay_out_own(const edgekit_session& session, const Extents& extents, uint8_t* start, Scratch* scratch) {
  const edgekit_program_info& info = session.program->info;
  const size_t group = info.heads / info.kv_heads;
  const size_t queries = group * kAttendRows;
  Carver carver(start);
  scratch->row = carver.take<float>(round_up(extents.longest_row, ops::kLanes));
  scratch->activations_memory = carver.take<uint8_t>(extents.one_row_bytes);
  scratch->tiles = carver.take<float>(EDGEKIT_TILE * kMostPieceTiles);
  scratch->queries = carver.take<float>((group + 1) * info.head_dim);
  scratch->partial = carver.take<float>(queries * session.partial_stride);
  scratch->merged = carver.take<float>(queries * session.partial_stride);
  scratch->query_rows = carver.take<const float*>(queries);
  scratch->seen_begin = carver.take<uint16_t>(queries);
  scratch->seen_end = carver.take<uint16_t>(queries);
  scratch->codes = carver.take<int8_t>(info.head_dim);  // a line's multiple, so also one of 32
  return carver.used();
}

edgekit_status allocate_cache(edgekit_session* session, edgekit_kv_format asked, edgekit_error* error) {
  const edgekit_program_info& info = session->program->info;
  const edgekit_kv_format format = asked == EDGEKIT_KV_AS_PLANNED ? info.kv_format : asked;
  if (!session->cache.allocate(info, session->context, format)) {
    return refuse(error, EDGEKIT_NO_MEMORY, "a cache for %u positions takes more memory than this system gives",
                  session->context);
  }
  session->partial_stride = session->cache.value_stride() + ops::kLanes;
  return EDGEKIT_OK;
}

edgekit_status allocate_scratch(edgekit_session* session, edgekit_error* error) {
  const unsigned threads = std::max(session->decode_threads, session->prefill_threads);
  const Extents extents = measure_steps(*session->program);
  Scratch measured;
  // A line between threads, so that no two write to the same one.
  const size_t own_bytes = lay_out_own(*session, extents, nullptr, &measured) + kLine;
  session->scratch.reset(new (std::nothrow) Scratch[threads]());
  if (session->scratch == nullptr || !session->arena.allocate(session->program->arena_floats * sizeof(float)) ||
      !session->shared.allocate(lay_out_shared(session, extents, nullptr)) ||
      !session->own.allocate(own_bytes * threads)) {
    return refuse(error, EDGEKIT_NO_MEMORY, "there is no memory for the activations of %u threads", threads);
  }
  lay_out_shared(session, extents, session->shared.at<uint8_t>(0));
  for (unsigned i = 0; i < threads; ++i) {
    lay_out_own(*session, extents, session->own.at<uint8_t>(i * own_bytes), &session->scratch[i]);
    session->scratch[i].speed = session->speeds.of_nth(i + 1);
  }
  return EDGEKIT_OK;
}

void run_as_member(void* session, unsigned member, uint32_t run) {
  run_steps(static_cast<edgekit_session*>(session), member, run);
}

edgekit_status prepare(edgekit_session* session, const edgekit_session_options& options, edgekit_error* error) {
  const edgekit_program_info& info = session->program->info;
  if (options.context > info.context) {
    return refuse(error, EDGEKIT_BAD_ARGUMENT, "a context of %u was asked for and the model was made for %u",
                  options.context, info.context);
  }
  if (options.decode_threads > EDGEKIT_MOST_THREADS || options.prefill_threads > EDGEKIT_MOST_THREADS) {
    return refuse(error, EDGEKIT_BAD_ARGUMENT, "at most %u threads can be used", EDGEKIT_MOST_THREADS);
  }
  if (unsigned(options.kv_format) > EDGEKIT_KV_Q8) {
    return refuse(error, EDGEKIT_BAD_ARGUMENT, "there is no cache format %u", unsigned(options.kv_format));
  }
  session->context = options.context > 0 ? options.context : info.context;
  session->decode_threads = choose_threads(options.decode_threads, info.decode_threads, session->speeds.count());
  session->prefill_threads = choose_threads(options.prefill_threads, info.prefill_threads, session->speeds.count());
  const bool has_own_threads = options.executor.execute == nullptr;
  session->keeps_to_fast_cpus = has_own_threads && options.keep_to_fast_cpus != 0 && !session->speeds.are_equal();
  edgekit_status status = allocate_cache(session, options.kv_format, error);
  if (status == EDGEKIT_OK) {
    status = allocate_scratch(session, error);
  }
  if (status != EDGEKIT_OK) {
    return status;
  }
  const unsigned threads = std::max(session->decode_threads, session->prefill_threads);
  const uint32_t spin =
      options.spin_microseconds == UINT32_MAX ? kDefaultSpinMicroseconds : options.spin_microseconds;
  const size_t phases = session->program->step_count * kPhasesPerStep;
  if (!session->team.start(threads, phases, spin, run_as_member, session, options.executor)) {
    return refuse(error, EDGEKIT_NO_MEMORY, "the system does not start %u threads", threads);
  }
  return EDGEKIT_OK;
}

}  // namespace

void PostedJob::post(uint32_t run, const Job& job) {
  run_.store(kBeingWritten, std::memory_order_relaxed);
  std::atomic_thread_fence(std::memory_order_release);
  tokens_.store(job.tokens, std::memory_order_relaxed);
  rows_.store(job.rows, std::memory_order_relaxed);
  position_.store(job.position, std::memory_order_relaxed);
  active_.store(job.active, std::memory_order_relaxed);
  logits_.store(job.logits, std::memory_order_relaxed);
  logits_rows_.store(job.logits_rows, std::memory_order_relaxed);
  run_.store(run, std::memory_order_release);
}

bool PostedJob::read(uint32_t run, Job* job) const {
  if (run_.load(std::memory_order_acquire) != run) {
    return false;
  }
  job->tokens = tokens_.load(std::memory_order_relaxed);
  job->rows = rows_.load(std::memory_order_relaxed);
  job->position = position_.load(std::memory_order_relaxed);
  job->active = active_.load(std::memory_order_relaxed);
  job->logits = logits_.load(std::memory_order_relaxed);
  job->logits_rows = logits_rows_.load(std::memory_order_relaxed);
  std::atomic_thread_fence(std::memory_order_acquire);
  return run_.load(std::memory_order_relaxed) == run;
}

size_t lay_out_activations(const ActivationForm& form, size_t rows, uint8_t* memory, Activations* activations) {
  Carver carver(memory);
  *activations = {};
  if (form.is_float) {
    activations->stride = round_up(form.k, ops::kLanes);
    activations->values = carver.take<float>(rows * activations->stride);
    return carver.used();
  }
  activations->stride = round_up(form.k, kLine);
  activations->groups = (form.k + form.group - 1) / form.group;
  activations->values = carver.take<int8_t>(rows * activations->stride);
  activations->scale = carver.take<float>(rows * activations->groups);
  activations->sum = carver.take<int32_t>(rows * activations->groups);
  return carver.used();
}

}  // namespace edgekit

using namespace edgekit;

edgekit_status edgekit_session_create(const edgekit_program* program, const edgekit_session_options* options,
                                      edgekit_session** session, edgekit_error* error) {
  *session = nullptr;
  auto* made = new (std::nothrow) edgekit_session();
  if (made == nullptr) {
    return refuse(error, EDGEKIT_NO_MEMORY, "there is no memory for a session");
  }
  made->program = program;
  const edgekit_status status = prepare(made, *options, error);
  if (status != EDGEKIT_OK) {
    edgekit_session_free(made);
    return status;
  }
  *session = made;
  return EDGEKIT_OK;
}

void edgekit_session_free(edgekit_session* session) { delete session; }

edgekit_memory edgekit_session_memory(const edgekit_session* session) {
  return {session->cache.bytes(), session->arena.bytes() + session->shared.bytes() + session->own.bytes()};
}

uint32_t edgekit_session_context(const edgekit_session* session) { return session->context; }

edgekit_kv_format edgekit_session_kv_format(const edgekit_session* session) { return session->cache.format(); }

uint32_t edgekit_session_position(const edgekit_session* session) { return session->position; }

uint32_t edgekit_session_decode_threads(const edgekit_session* session) { return session->decode_threads; }

uint32_t edgekit_session_prefill_threads(const edgekit_session* session) { return session->prefill_threads; }

edgekit_status edgekit_session_reset(edgekit_session* session, uint32_t position, edgekit_error* error) {
  if (position > session->position) {
    return refuse(error, EDGEKIT_BAD_ARGUMENT, "position %u was asked for and only %u tokens were read", position,
                  session->position);
  }
  session->position = position;
  return EDGEKIT_OK;
}

edgekit_status edgekit_session_set_threads(edgekit_session* session, uint32_t decode_threads, uint32_t prefill_threads,
                                           edgekit_error* error) {
  const unsigned most = session->team.count();
  if (decode_threads == 0 || prefill_threads == 0 || decode_threads > most || prefill_threads > most) {
    return refuse(error, EDGEKIT_BAD_ARGUMENT, "this session was made for 1 to %u threads", most);
  }
  session->decode_threads = decode_threads;
  session->prefill_threads = prefill_threads;
  return EDGEKIT_OK;
}

edgekit_status edgekit_session_forward(edgekit_session* session, const uint32_t* tokens, size_t count, float* logits,
                                       size_t logits_rows, edgekit_error* error) {
  const edgekit_program_info& info = session->program->info;
  if (count == 0 || count > session->context - session->position) {
    return refuse(error, EDGEKIT_BAD_ARGUMENT, "%zu tokens do not fit after %u in a context of %u", count,
                  session->position, session->context);
  }
  if (logits_rows > count || (logits_rows > 0 && logits == nullptr)) {
    return refuse(error, EDGEKIT_BAD_ARGUMENT, "logits of %zu rows were asked for and %zu are computed", logits_rows,
                  count);
  }
  for (size_t i = 0; i < count; ++i) {
    if (tokens[i] >= info.vocab) {
      return refuse(error, EDGEKIT_BAD_ARGUMENT, "token %u is not in the vocabulary of %u", tokens[i], info.vocab);
    }
  }
  const size_t first_wanted = count - logits_rows;
  for (size_t done = 0; done < count;) {
    const size_t rows = std::min<size_t>(count - done, info.max_rows);
    Job job;
    job.tokens = tokens + done;
    job.rows = rows;
    job.position = session->position;
    job.active = rows == 1 ? session->decode_threads : session->prefill_threads;
    job.logits = logits;
    job.logits_rows = done + rows > first_wanted ? std::min(rows, done + rows - first_wanted) : 0;
    session->job.post(session->team.next_run(), job);
    session->team.run(job.active);
    session->position += uint32_t(rows);
    session->passes.add(rows);
    session->last_passes.add(job.logits_rows);
    if (job.logits_rows > 0) {
      logits += job.logits_rows * info.vocab;
    }
    done += rows;
  }
  return EDGEKIT_OK;
}
