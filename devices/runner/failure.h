// What ends the program early: a sentence, what to do about it, and the exit code (README, "Exit codes").
#pragma once

#include <string>

#include "edgekit/status.h"

namespace edgekit::runner {

enum ExitCode : int {
  kInternal = 1,
  kUsage = 2,
  kUnsupported = 3,
  kDamaged = 7,
  kDoesNotFit = 9,
  kInterrupted = 130,
};

struct Failure {
  int exit_code;
  std::string message;
  std::string hint;
};

// The failure that a status of the library means. `file` is named in what a damaged file's person should do.
[[noreturn]] void fail(edgekit_status status, const edgekit_error& error, const std::string& file);

// Notes that the person has pressed Ctrl-C; may be called from a signal handler.
void interrupt();

// Throws, once, if interrupt() was called. Called between tokens.
void stop_if_interrupted();

}  // namespace edgekit::runner
