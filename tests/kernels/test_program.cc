// Programs: what they compute, that nothing about the machine changes it, and that a damaged file is refused.
#include <cmath>
#include <utility>

#include "check.h"
#include "edgekit/program.h"
#include "executors.h"
#include "program_builder.h"
#include "program_handles.h"
#include "program/session.h"

namespace edgekit::testing {
namespace {

std::vector<uint32_t> random_tokens(size_t count, size_t vocab) {
  Random random(7);
  std::vector<uint32_t> tokens(count);
  for (uint32_t& token : tokens) token = static_cast<uint32_t>(random.below(vocab));
  return tokens;
}

// Logits of every position, the tokens given `chunk` at a time.
std::vector<float> forward(edgekit_session* session, const std::vector<uint32_t>& tokens, size_t chunk, size_t vocab) {
  std::vector<float> logits(tokens.size() * vocab);
  for (size_t done = 0; done < tokens.size(); done += chunk) {
    const size_t count = chunk < tokens.size() - done ? chunk : tokens.size() - done;
    edgekit_error error{};
    const edgekit_status status =
        edgekit_session_forward(session, &tokens[done], count, &logits[done * vocab], count, &error);
    CHECK_THAT(status == EDGEKIT_OK, "%s", error.message);
  }
  return logits;
}

struct Model {
  explicit Model(const ModelShape& shape)
      : writer(shape), file(writer.write()), data(aligned(file.data(), file.size())) {
    program = open(data, file.size());
  }
  ProgramWriter writer;
  std::vector<uint8_t> file;
  Bytes data;
  Program program;
};

ModelShape float_shape() {
  ModelShape shape;
  for (edgekit_format& format : shape.qkv) format = EDGEKIT_F32;
  shape.out = shape.gate_up = shape.down = shape.head = EDGEKIT_F32;
  return shape;
}

ModelShape mixed_shape() {
  ModelShape shape;
  shape.qkv[0] = EDGEKIT_Q4;
  shape.qkv[1] = EDGEKIT_F16;
  shape.qkv[2] = EDGEKIT_Q8;
  shape.split_qkv = true;
  shape.out = EDGEKIT_Q3;
  shape.gate_up = EDGEKIT_Q2;
  shape.down = EDGEKIT_T2;
  shape.head = EDGEKIT_Q8;
  shape.bias = true;
  return shape;
}

ModelShape odd_shape() {
  ModelShape shape = float_shape();
  shape.hidden = 40;
  shape.heads = 6;
  shape.kv_heads = 3;
  shape.head_dim = 10;
  shape.intermediate = 50;
  shape.vocab = 33;
  return shape;
}

// Root mean square distance in units of the expected numbers' own.
double distance(const std::vector<float>& found, const std::vector<double>& expected) {
  double error = 0, size = 0;
  for (size_t i = 0; i < found.size(); i++) {
    error += (found[i] - expected[i]) * (found[i] - expected[i]);
    size += expected[i] * expected[i];
  }
  return std::sqrt(error / size);
}

// Of the runtime's logits from the forward pass in double.
double distance(const Model& model, size_t tokens, uint32_t threads, size_t chunk) {
  const std::vector<uint32_t> ids = random_tokens(tokens, model.writer.model().shape.vocab);
  const Session session = start(model.program, threads);
  const std::vector<float> found = forward(session.get(), ids, chunk, model.writer.model().shape.vocab);
  return distance(found, DenseForward(model.writer.model()).run(ids));
}

// Rounding to half in the cache can fall the other way by a float's error: 2^-11 of one element among hundreds.
constexpr double kFloatDistance = 1e-4;
// A quantized activation can fall to the neighbouring code: 1/127 of the largest of some tens of elements.
constexpr double kQuantizedDistance = 1e-2;

TEST(a_float_model_computes_what_the_definition_says) {
  const Model model(float_shape());
  CHECK(distance(model, 150, 1, 150) < kFloatDistance);
  CHECK(distance(model, 150, 2, 1) < kFloatDistance);
}

TEST(sizes_that_are_no_multiple_of_a_tile_compute_the_same_function) {
  const Model model(odd_shape());
  CHECK(distance(model, 40, 2, 7) < kFloatDistance);
  ModelShape shape = odd_shape();
  shape.qkv[0] = shape.qkv[1] = shape.qkv[2] = shape.out = shape.gate_up = shape.down = EDGEKIT_Q8;
  shape.head = EDGEKIT_Q4;
  CHECK(distance(Model(shape), 40, 2, 7) < kQuantizedDistance);
}

TEST(every_format_in_one_model_computes_what_the_definition_says) {
  const Model model(mixed_shape());
  CHECK(distance(model, 60, 2, 60) < kQuantizedDistance);
  CHECK(distance(model, 60, 1, 1) < kQuantizedDistance);
}

TEST(biases_query_norms_and_an_untied_head_are_applied) {
  ModelShape shape = float_shape();
  shape.bias = shape.qk_norm = true;
  shape.tied = false;
  CHECK(distance(Model(shape), 50, 2, 50) < kFloatDistance);
}

TEST(a_cache_in_int8_holds_rounded_keys_and_values) {
  for (ModelShape shape : {float_shape(), odd_shape()}) {
    shape.kv = format::KvFormat::kQ8;
    const Model model(shape);
    CHECK(distance(model, 150, 1, 150) < kQuantizedDistance);
    CHECK(distance(model, 150, 2, 1) < kQuantizedDistance);
    CHECK(distance(model, 200, 3, 37) < kQuantizedDistance);
    shape.window = 20;
    CHECK(distance(Model(shape), 200, 2, 200) < kQuantizedDistance);
    CHECK(distance(Model(shape), 200, 2, 1) < kQuantizedDistance);
  }
}

TEST(a_session_keeps_keys_and_values_as_it_is_told) {
  ModelShape shape = float_shape();
  const Model half(shape);
  shape.kv = format::KvFormat::kQ8;
  const Model coded(shape);
  CHECK(edgekit_program_get_info(half.program.get())->kv_format == EDGEKIT_KV_F16);
  CHECK(edgekit_program_get_info(coded.program.get())->kv_format == EDGEKIT_KV_Q8);
  const std::vector<uint32_t> ids = random_tokens(40, shape.vocab);
  // 2 layers * 2 heads * 112 positions, of each a key and a value of 16 numbers; for codes, and a scale of 4 bytes.
  constexpr uint64_t kNumbers = 2 * 2 * 112 * 2;
  std::vector<float> logits[2];
  for (const Model* model : {&half, &coded}) {
    for (const edgekit_kv_format asked : {EDGEKIT_KV_AS_PLANNED, EDGEKIT_KV_F16, EDGEKIT_KV_Q8}) {
      const Session session = start(model->program, 1, 100, asked);
      const edgekit_kv_format planned = model == &half ? EDGEKIT_KV_F16 : EDGEKIT_KV_Q8;
      const edgekit_kv_format used = edgekit_session_kv_format(session.get());
      CHECK(used == (asked == EDGEKIT_KV_AS_PLANNED ? planned : asked));
      CHECK(edgekit_session_memory(session.get()).kv_bytes == kNumbers * (used == EDGEKIT_KV_Q8 ? 16 + 4 : 16 * 2));
      std::vector<float>& expected = logits[used == EDGEKIT_KV_Q8];
      const std::vector<float> found = forward(session.get(), ids, 40, shape.vocab);
      if (expected.empty()) expected = found;
      CHECK(std::memcmp(found.data(), expected.data(), found.size() * sizeof(float)) == 0);
    }
  }
  CHECK(logits[0] != logits[1]);
  const edgekit_session_options options = {0, 1, 1, 0, 0, static_cast<edgekit_kv_format>(3), {}};
  edgekit_session* made = nullptr;
  edgekit_error error{};
  CHECK(edgekit_session_create(half.program.get(), &options, &made, &error) == EDGEKIT_BAD_ARGUMENT && made == nullptr);
}

TEST(a_session_has_the_context_it_is_told_or_the_programs) {
  ModelShape shape = float_shape();
  shape.context = 4096;
  const Model model(shape);
  // 2 layers * 2 heads, of each position a key and a value of 16 halves.
  constexpr uint64_t kBytes = 2 * 2 * 2 * 16 * 2;
  CHECK(edgekit_session_memory(start(model.program, 1, 0).get()).kv_bytes == kBytes * 4096);
  CHECK(edgekit_session_memory(start(model.program, 1, 1024).get()).kv_bytes == kBytes * 1024);
}

TEST(a_window_hides_what_is_behind_it) {
  ModelShape shape = float_shape();
  shape.window = 20;
  CHECK(distance(Model(shape), 200, 2, 200) < kFloatDistance);
  CHECK(distance(Model(shape), 200, 2, 1) < kFloatDistance);

  const Model seeing_all(float_shape());
  const std::vector<uint32_t> ids = random_tokens(200, shape.vocab);
  const std::vector<float> found = forward(start(seeing_all.program, 1).get(), ids, 200, shape.vocab);
  CHECK(distance(found, DenseForward(Model(shape).writer.model()).run(ids)) > 10 * kFloatDistance);
}

TEST(neither_threads_nor_the_division_into_calls_change_a_bit) {
  ModelShape coded = odd_shape();
  coded.kv = format::KvFormat::kQ8;
  ModelShape windowed = float_shape();
  windowed.window = 150;
  for (const ModelShape& shape : {mixed_shape(), odd_shape(), float_shape(), coded, windowed}) {
    const Model model(shape);
    const std::vector<uint32_t> ids = random_tokens(170, shape.vocab);
    const std::vector<float> expected = forward(start(model.program, 1).get(), ids, 170, shape.vocab);
    for (const uint32_t threads : {1u, 2u, 5u}) {
      for (const size_t chunk : {size_t(1), size_t(2), size_t(19), size_t(170)}) {
        const std::vector<float> found = forward(start(model.program, threads).get(), ids, chunk, shape.vocab);
        CHECK_THAT(std::memcmp(found.data(), expected.data(), found.size() * sizeof(float)) == 0,
                   "threads = %u, chunk = %zu", threads, chunk);
      }
    }
  }
}

TEST(the_hosts_threads_change_no_bit) {
  for (const ModelShape& shape : {mixed_shape(), odd_shape()}) {
    const Model model(shape);
    const std::vector<uint32_t> ids = random_tokens(90, shape.vocab);
    const std::vector<float> expected = forward(start(model.program, 1).get(), ids, 90, shape.vocab);
    for (const edgekit_executor& executor : kExecutors) {
      for (const size_t chunk : {size_t(1), size_t(19), size_t(90)}) {
        const Session session = start(model.program, 4, 0, EDGEKIT_KV_AS_PLANNED, executor);
        const std::vector<float> found = forward(session.get(), ids, chunk, shape.vocab);
        CHECK_THAT(std::memcmp(found.data(), expected.data(), found.size() * sizeof(float)) == 0,
                   "executor %td, chunk = %zu", &executor - kExecutors, chunk);
      }
    }
  }
}

TEST(the_host_is_called_once_a_run_for_all_members_and_not_for_one_alone) {
  struct Calls {
    uint32_t runs = 0;
    uint32_t members = 0;
  } calls;
  const auto count = [](void* context, uint32_t members, Body body, void* argument) {
    static_cast<Calls*>(context)->runs++;
    static_cast<Calls*>(context)->members += members;
    one_after_another(nullptr, members, body, argument);
  };
  const Model model(mixed_shape());
  const Session session = start(model.program, 3, 0, EDGEKIT_KV_AS_PLANNED, {count, &calls});
  edgekit_error error{};
  const std::vector<uint32_t> ids = random_tokens(4, mixed_shape().vocab);
  CHECK(edgekit_session_forward(session.get(), ids.data(), 3, nullptr, 0, &error) == EDGEKIT_OK);
  CHECK(calls.runs == 1 && calls.members == 3);
  CHECK(edgekit_session_set_threads(session.get(), 1, 3, &error) == EDGEKIT_OK);
  CHECK(edgekit_session_forward(session.get(), &ids[3], 1, nullptr, 0, &error) == EDGEKIT_OK);
  CHECK(calls.runs == 1);
}

TEST(rows_whose_logits_are_not_wanted_change_no_bit_of_the_others) {
  ModelShape windowed = mixed_shape();
  windowed.window = 20;
  for (const ModelShape& shape : {mixed_shape(), windowed, float_shape()}) {
    const Model model(shape);
    const std::vector<uint32_t> ids = random_tokens(130, shape.vocab);
    const std::vector<float> all = forward(start(model.program, 1).get(), ids, 130, shape.vocab);
    for (const uint32_t threads : {1u, 2u, 5u}) {
      // The first call leaves a partial chunk and a partial block of the cache; what the second sees must be whole.
      for (const size_t wanted : {size_t(0), size_t(1), size_t(2), size_t(9), size_t(40)}) {
        const Session session = start(model.program, threads);
        for (const auto& [done, count] : {std::pair<size_t, size_t>{0, 75}, {75, 55}}) {
          std::vector<float> logits(wanted * shape.vocab);
          edgekit_error error{};
          CHECK(edgekit_session_forward(session.get(), &ids[done], count, logits.data(), wanted, &error) == EDGEKIT_OK);
          CHECK_THAT(wanted == 0 || std::memcmp(logits.data(), &all[(done + count - wanted) * shape.vocab],
                                                logits.size() * sizeof(float)) == 0,
                     "threads = %u, wanted = %zu", threads, wanted);
        }
      }
    }
  }
}

TEST(cpus_of_different_speeds_change_no_bit) {
  const ModelShape shape = mixed_shape();
  const Model model(shape);
  const std::vector<uint32_t> ids = random_tokens(90, shape.vocab);
  const std::vector<float> expected = forward(start(model.program, 1).get(), ids, 90, shape.vocab);
  for (const CpuSpeeds& speeds : {CpuSpeeds{1, 1024, 1024}, CpuSpeeds{1024, 300, 20}, CpuSpeeds{77, 1000, 5}}) {
    for (const size_t chunk : {size_t(1), size_t(19), size_t(90)}) {
      const Session session = start(model.program, 3);
      session->speeds = speeds;
      const std::vector<float> found = forward(session.get(), ids, chunk, shape.vocab);
      CHECK_THAT(std::memcmp(found.data(), expected.data(), found.size() * sizeof(float)) == 0, "chunk = %zu", chunk);
    }
  }
}

TEST(the_logits_have_the_same_bits_on_every_machine) {
  ModelShape shape = mixed_shape();
  shape.qk_norm = true;
  const Model model(shape);
  // From the scalar kernels on x86-64.
  for (const auto& [kv, expected] : {std::pair(EDGEKIT_KV_F16, 0x43240749u), std::pair(EDGEKIT_KV_Q8, 0xf148ca45u)}) {
    const std::vector<float> logits =
        forward(start(model.program, 2, 0, kv).get(), random_tokens(140, shape.vocab), 100, shape.vocab);
    const uint32_t digest = crc32(reinterpret_cast<const uint8_t*>(logits.data()), logits.size() * sizeof(float));
    CHECK_THAT(digest == expected, "%08x", digest);
  }
}

}  // namespace
}  // namespace edgekit::testing

EDGEKIT_TEST_MAIN
