// edgekit-run: the program that is put on a board beside its model.
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <exception>
#include <new>
#include <string>

#include "failure.h"
#include "verbs.h"

namespace edgekit::runner {
namespace {

// The first Ctrl-C ends the work between two tokens, the second ends the program.
void note_interrupt(int) {
  interrupt();
  signal(SIGINT, SIG_DFL);
}

// A mapped file that was cut short, or a medium that cannot be read, shows itself as this signal.
void end_on_unreadable_file(int) {
  constexpr char kMessage[] =
      "edgekit-run: the model file cannot be read to its end\nhint: was it changed, or is the medium failing?\n";
  const ssize_t written = write(STDERR_FILENO, kMessage, sizeof kMessage - 1);
  _exit(written >= 0 ? kDamaged : kInternal);
}

int report(const Failure& failure) {
  std::fflush(stdout);
  std::fprintf(stderr, "edgekit-run: %s\n", failure.message.c_str());
  if (!failure.hint.empty()) {
    std::fprintf(stderr, "hint: %s\n", failure.hint.c_str());
  }
  return failure.exit_code;
}

}  // namespace

}  // namespace edgekit::runner

int main(int count, char** words) {
  using namespace edgekit::runner;
  signal(SIGINT, note_interrupt);
  signal(SIGBUS, end_on_unreadable_file);
  try {
    run_verb(count - 1, words + 1);
    return std::fflush(stdout) == 0 ? 0 : report({kUsage, "the output cannot be written", "is the disk full?"});
  } catch (const Failure& failure) {
    return report(failure);
  } catch (const std::bad_alloc&) {
    return report({kDoesNotFit, "there is not enough memory", "a smaller --context takes less"});
  } catch (const std::exception& error) {
    return report({kInternal, std::string("the work could not go on: ") + error.what(),
                   "fewer --threads take less of the system; if that does not help, please report this"});
  }
}
