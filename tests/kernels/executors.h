// Hosts that run the members of a team: one after another in either order, and each on a thread of its own.
#pragma once

#include <thread>
#include <vector>

#include "edgekit/program.h"

namespace edgekit::testing {

using Body = void (*)(void* argument, uint32_t member);

inline void one_after_another(void*, uint32_t count, Body body, void* argument) {
  for (uint32_t member = 0; member < count; member++) body(argument, member);
}

inline void backwards(void*, uint32_t count, Body body, void* argument) {
  for (uint32_t member = count; member-- > 0;) body(argument, member);
}

inline void on_fresh_threads(void*, uint32_t count, Body body, void* argument) {
  std::vector<std::thread> threads;
  for (uint32_t member = 0; member < count; member++) threads.emplace_back(body, argument, member);
  for (std::thread& thread : threads) thread.join();
}

constexpr edgekit_executor kExecutors[] = {
    {one_after_another, nullptr}, {backwards, nullptr}, {on_fresh_threads, nullptr}};

}  // namespace edgekit::testing
