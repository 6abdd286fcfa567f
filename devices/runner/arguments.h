// The words of the command line after the verb: one file, and options with values.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <map>
#include <string>
#include <vector>

namespace edgekit::runner {

enum class Takes { kNothing, kValue };

struct Option {
  const char* name;  // "--seed", "-n"
  Takes takes = Takes::kValue;
};

// Thrown where an option is -h or --help.
struct HelpAsked {};

bool asks_for_help(const std::string& word);

class Arguments {
 public:
  // Throws Failure for an option that is not in `known`, a missing value, or a second file; HelpAsked.
  Arguments(int count, char** words, std::initializer_list<Option> known);

  // The one positional argument; Failure if absent.
  const std::string& file() const;

  bool has(const std::string& name) const { return values_.count(name) > 0; }
  std::string text(const std::string& name, const std::string& absent = "") const;

  // Failure unless the value is a number in [least, most].
  uint64_t whole(const std::string& name, uint64_t absent, uint64_t least, uint64_t most) const;
  double number(const std::string& name, double absent, double least, double most) const;

  // Comma-separated numbers.
  std::vector<uint32_t> list(const std::string& name, std::vector<uint32_t> absent, uint32_t least,
                             uint32_t most) const;

 private:
  std::string file_;
  std::map<std::string, std::string> values_;
};

// The options that say how a model is run, shared by the verbs.
constexpr Option kThreads = {"--threads"};
constexpr Option kPrefillThreads = {"--prefill-threads"};
constexpr Option kContext = {"--context"};
constexpr Option kKv = {"--kv"};
constexpr Option kJson = {"--json"};

}  // namespace edgekit::runner
