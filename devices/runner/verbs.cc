#include "verbs.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "arguments.h"
#include "edgekit/cpu.h"
#include "failure.h"

namespace edgekit::runner {
namespace {

struct Verb {
  const char* name;
  const char* usage;
  void (*run)(int count, char** words);
};

constexpr Verb kVerbs[] = {
    {"generate",
     "edgekit-run generate MODEL (--prompt TEXT | --prompt-file FILE | --tokens 1,2,3) [-n 128] [--temperature 0.8]\n"
     "                     [--top-k 40] [--top-p 0.95] [--repetition-penalty 1] [--seed 0] [--raw] [--threads N]\n"
     "                     [--prefill-threads N] [--context N] [--kv f16|q8] [--json FILE]\n",
     generate},
    {"bench", "edgekit-run bench MODEL [-p 512] [-n 128] [-d 0] [-r 5] [-t 1,2] [--kv f16|q8] [--json FILE]\n", bench},
    {"calibrate", "edgekit-run calibrate MODEL [--json FILE]\n", calibrate},
    {"probe",
     "edgekit-run probe MODEL [--probe FILE] [--threads N] [--prefill-threads N] [--context N] [--kv f16|q8]\n"
     "                     [--json FILE]\n",
     probe},
    {"logits",
     "edgekit-run logits MODEL --token-file FILE --out FILE [--chunk N] [--start N] [--threads N]\n"
     "                     [--prefill-threads N] [--context N] [--kv f16|q8]\n",
     logits},
    {"tokenize", "edgekit-run tokenize MODEL [--raw] < text\n", tokenize},
    {"detokenize", "edgekit-run detokenize MODEL < ids\n", detokenize},
    {"info", "edgekit-run info MODEL [--json]\n", info},
    {"verify", "edgekit-run verify MODEL\n", verify},
    {"cpu", "edgekit-run cpu [--json]\n", cpu},
};

constexpr char kAboutFiles[] = "FILE may be - for standard output.\n";

// The library takes an unknown word for none; a person who writes one does not want that.
void check_isa() {
  const char* isa = std::getenv("EDGEKIT_ISA");
  if (isa == nullptr || *isa == '\0' || edgekit_isa_features(isa) != UINT64_MAX) {
    return;
  }
  std::string words;
  for (size_t i = 0; edgekit_isa_word(i) != nullptr; ++i) {
    words += std::string(words.empty() ? "" : ", ") + edgekit_isa_word(i);
  }
  throw Failure{kUsage, "EDGEKIT_ISA is '" + std::string(isa) + "'", "one of: " + words};
}

}  // namespace

void run_verb(int count, char** words) {
  if (count > 0 && asks_for_help(words[0])) {
    for (const Verb& verb : kVerbs) {
      std::fputs(verb.usage, stdout);
    }
    std::fputs(kAboutFiles, stdout);
    return;
  }
  std::string names;
  for (const Verb& verb : kVerbs) {
    if (count > 0 && std::strcmp(words[0], verb.name) == 0) {
      try {
        check_isa();
        return verb.run(count - 1, words + 1);
      } catch (const HelpAsked&) {
        std::fputs(verb.usage, stdout);
        return;
      }
    }
    names += std::string(names.empty() ? "" : ", ") + verb.name;
  }
  throw Failure{kUsage, count > 0 ? "there is no verb '" + std::string(words[0]) + "'" : "nothing to do is given",
                "one of: " + names + "; edgekit-run --help shows their options"};
}

}  // namespace edgekit::runner
