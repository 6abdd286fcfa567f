// A test is a program: TEST(a_true_sentence) { CHECK(...); } ... and run_tests() as main. Prints what failed and where.
#pragma once

#include <cstdio>
#include <cstring>

namespace edgekit::testing {

struct Test {
  const char* name;
  void (*run)();
  Test* next;
};

inline Test* tests = nullptr;
inline int failures = 0;

inline Test** last_test() {
  Test** last = &tests;
  while (*last != nullptr) last = &(*last)->next;
  return last;
}

struct Registered {
  explicit Registered(Test* test) { *last_test() = test; }
};

// Past the tenth failure of a run only the count matters.
inline bool report(const char* file, int line, const char* what) {
  if (++failures <= 10) std::printf("%s:%d: not true: %s\n", file, line, what);
  return false;
}

inline int run_tests(int argc, char** argv) {
  int failed = 0;
  for (const Test* test = tests; test != nullptr; test = test->next) {
    if (argc > 1 && std::strstr(test->name, argv[1]) == nullptr) continue;
    const int before = failures;
    test->run();
    std::printf("%s %s\n", failures == before ? "ok  " : "FAIL", test->name);
    std::fflush(stdout);
    failed += failures != before;
  }
  return failed == 0 ? 0 : 1;
}

}  // namespace edgekit::testing

#define TEST(name)                                                                      \
  static void name();                                                                   \
  static edgekit::testing::Test test_of_##name = {#name, name, nullptr};                \
  static const edgekit::testing::Registered registered_##name(&test_of_##name);         \
  static void name()

// True if the condition is; else the failure is printed and the test goes on.
#define CHECK(condition) ((condition) || edgekit::testing::report(__FILE__, __LINE__, #condition))

// As CHECK, and says more: CHECK_THAT(a == b, "k = %zu", k).
#define CHECK_THAT(condition, ...)                                            \
  ((condition) || (edgekit::testing::report(__FILE__, __LINE__, #condition) || \
                   (edgekit::testing::failures <= 10 && (std::printf("    " __VA_ARGS__), std::printf("\n"), false))))

#define EDGEKIT_TEST_MAIN \
  int main(int argc, char** argv) { return edgekit::testing::run_tests(argc, argv); }
