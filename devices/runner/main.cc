// edgekit-run: the program that is put on a board beside its model.
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <exception>
#include <new>

#include "failure.h"
#include "verbs.h"

namespace edgekit::runner {
namespace {

constexpr char kUsageText[] =
    "edgekit-run generate MODEL (--prompt TEXT | --prompt-file FILE | --tokens 1,2,3) [-n 128] [--temperature 0.8]\n"
    "                     [--top-k 40] [--top-p 0.95] [--repetition-penalty 1] [--seed 0] [--raw] [--threads N]\n"
    "                     [--prefill-threads N] [--context N] [--kv f16|q8] [--json FILE]\n"
    "edgekit-run bench MODEL [-p 512] [-n 128] [-d 0] [-r 5] [-t 1,2] [--kv f16|q8] [--json FILE]\n"
    "edgekit-run calibrate MODEL [--json FILE]\n"
    "edgekit-run probe MODEL [--probe FILE] [--threads N] [--prefill-threads N] [--context N] [--kv f16|q8]\n"
    "                     [--json FILE]\n"
    "edgekit-run logits MODEL --token-file FILE --out FILE [--chunk N] [--start N] [--threads N]\n"
    "                     [--prefill-threads N] [--context N] [--kv f16|q8]\n"
    "edgekit-run tokenize MODEL [--raw] < text\n"
    "edgekit-run detokenize MODEL < ids\n"
    "edgekit-run info MODEL [--json]\n"
    "edgekit-run verify MODEL\n"
    "edgekit-run cpu [--json]\n"
    "FILE may be - for standard output.\n";

struct Verb {
  const char* name;
  void (*run)(int count, char** words);
};

constexpr Verb kVerbs[] = {
    {"generate", generate}, {"bench", bench},       {"calibrate", calibrate},   {"probe", probe},
    {"logits", logits},     {"tokenize", tokenize}, {"detokenize", detokenize}, {"info", info},
    {"verify", verify},     {"cpu", cpu},
};

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

void run_verb(int count, char** words) {
  for (const Verb& verb : kVerbs) {
    if (count > 1 && std::strcmp(words[1], verb.name) == 0) {
      return verb.run(count - 2, words + 2);
    }
  }
  if (count > 1 && (std::strcmp(words[1], "--help") == 0 || std::strcmp(words[1], "-h") == 0)) {
    std::fputs(kUsageText, stdout);
    return;
  }
  std::string names;
  for (const Verb& verb : kVerbs) {
    names += std::string(names.empty() ? "" : ", ") + verb.name;
  }
  throw Failure{kUsage, count > 1 ? "there is no verb '" + std::string(words[1]) + "'" : "nothing to do is given",
                "one of: " + names + "; edgekit-run --help shows their options"};
}

}  // namespace

}  // namespace edgekit::runner

int main(int count, char** words) {
  using namespace edgekit::runner;
  signal(SIGINT, note_interrupt);
  signal(SIGBUS, end_on_unreadable_file);
  try {
    run_verb(count, words);
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
