// What a session says that it did.
#include <cstring>

#include "check.h"
#include "edgekit/program.h"
#include "program_builder.h"
#include "program_handles.h"

namespace edgekit::testing {
namespace {

struct Case {
  explicit Case(const ModelShape& shape, uint32_t context = 0) {
    ProgramWriter writer(shape);
    file = writer.write();
    data = aligned(file.data(), file.size());
    program = open(data, file.size());
    session = start(program, 1, context);
  }

  void forward(size_t count, size_t logits_rows) {
    const std::vector<uint32_t> tokens(count, 1);
    std::vector<float> logits(logits_rows * edgekit_program_get_info(program.get())->vocab);
    edgekit_error error{};
    CHECK(edgekit_session_forward(session.get(), tokens.data(), count, logits.data(), logits_rows, &error) ==
          EDGEKIT_OK);
  }

  // Of the kernels that this CPU chooses for a format.
  uint64_t products(edgekit_format format, size_t rows) const {
    return edgekit_session_products(session.get(), edgekit_gemm_choose(format, rows, edgekit_cpu_features()));
  }

  std::vector<uint8_t> file;
  Bytes data;
  Program program;
  Session session;
};

TEST(products_are_counted_for_the_kernel_that_multiplied) {
  ModelShape shape;
  shape.head = EDGEKIT_Q4;
  shape.tied = false;
  Case c(shape);
  CHECK(c.products(EDGEKIT_Q8, 1) == 0 && c.products(EDGEKIT_Q8, 2) == 0);
  c.forward(1, 1);
  // q|k|v, output, gate|up and down of two layers; the head.
  CHECK(c.products(EDGEKIT_Q8, 1) == 8 && c.products(EDGEKIT_Q8, 2) == 0);
  CHECK(c.products(EDGEKIT_Q4, 1) == 1 && c.products(EDGEKIT_Q4, 2) == 0);
  // 32 rows at once, of which the last layer needs nothing but q|k|v, and one more.
  c.forward(33, 1);
  CHECK(c.products(EDGEKIT_Q8, 1) == 16 && c.products(EDGEKIT_Q8, 2) == 5);
  CHECK(c.products(EDGEKIT_Q4, 1) == 2 && c.products(EDGEKIT_Q4, 2) == 0);
  c.forward(5, 3);
  CHECK(c.products(EDGEKIT_Q8, 2) == 13 && c.products(EDGEKIT_Q4, 2) == 1);
  c.forward(5, 0);
  CHECK(c.products(EDGEKIT_Q8, 2) == 18 && c.products(EDGEKIT_Q4, 2) == 1);
  // After q|k|v the last layer has one row.
  c.forward(5, 1);
  CHECK(c.products(EDGEKIT_Q8, 1) == 19 && c.products(EDGEKIT_Q8, 2) == 23);
  CHECK(c.products(EDGEKIT_Q4, 1) == 3 && c.products(EDGEKIT_Q4, 2) == 1);
}

TEST(a_token_attends_to_all_before_it_or_to_its_window) {
  ModelShape shape;
  // Two layers of two heads: 16 keys and 16 values of two bytes each.
  const uint64_t each = 2 * 2 * (16 + 16) * 2;
  CHECK(edgekit_session_attended_bytes(Case(shape).session.get(), 0) == each);
  CHECK(edgekit_session_attended_bytes(Case(shape).session.get(), 99) == 100 * each);
  CHECK(edgekit_session_attended_bytes(Case(shape, 50).session.get(), 49) == 50 * each);
  shape.window = 8;
  CHECK(edgekit_session_attended_bytes(Case(shape).session.get(), 6) == 7 * each);
  CHECK(edgekit_session_attended_bytes(Case(shape).session.get(), 99) == 8 * each);
}

}  // namespace
}  // namespace edgekit::testing

EDGEKIT_TEST_MAIN
