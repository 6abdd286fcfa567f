#include "arguments.h"

#include <cerrno>
#include <cmath>
#include <cstdlib>

#include "failure.h"

namespace edgekit::runner {
namespace {

std::string list_names(std::initializer_list<Option> known) {
  std::string names;
  for (const Option& option : known) {
    names += names.empty() ? "" : ", ";
    names += option.name;
  }
  return names;
}

// Failure unless the whole of `text` is digits that make a number in [least, most].
uint64_t parse_whole(const std::string& name, const std::string& text, uint64_t least, uint64_t most) {
  errno = 0;
  char* end = nullptr;
  const bool has_digits = !text.empty() && text.find_first_not_of("0123456789") == std::string::npos;
  const uint64_t value = has_digits ? std::strtoull(text.c_str(), &end, 10) : 0;
  if (!has_digits || errno != 0 || value < least || value > most) {
    throw Failure{kUsage, name + " is '" + text + "'",
                  "a whole number from " + std::to_string(least) + " to " + std::to_string(most)};
  }
  return value;
}

}  // namespace

bool asks_for_help(const std::string& word) { return word == "-h" || word == "--help"; }

Arguments::Arguments(int count, char** words, std::initializer_list<Option> known) {
  for (int i = 0; i < count; ++i) {
    const std::string word = words[i];
    if (word.size() < 2 || word[0] != '-') {
      if (!file_.empty()) {
        throw Failure{kUsage, "'" + word + "' is one file too many", "options are: " + list_names(known)};
      }
      file_ = word;
      continue;
    }
    if (asks_for_help(word)) {
      throw HelpAsked{};
    }
    const Option* found = nullptr;
    for (const Option& option : known) {
      found = word == option.name ? &option : found;
    }
    if (found == nullptr) {
      throw Failure{kUsage, "there is no option '" + word + "' here", "options are: " + list_names(known)};
    }
    if (found->takes == Takes::kNothing) {
      values_[word] = "";
      continue;
    }
    if (i + 1 == count) {
      throw Failure{kUsage, "option '" + word + "' needs a value", ""};
    }
    values_[word] = words[++i];
  }
}

const std::string& Arguments::file() const {
  if (file_.empty()) {
    throw Failure{kUsage, "no model is given", "edgekit-run VERB model.edge [OPTIONS]"};
  }
  return file_;
}

std::string Arguments::text(const std::string& name, const std::string& absent) const {
  const auto found = values_.find(name);
  return found == values_.end() ? absent : found->second;
}

uint64_t Arguments::whole(const std::string& name, uint64_t absent, uint64_t least, uint64_t most) const {
  return has(name) ? parse_whole(name, text(name), least, most) : absent;
}

double Arguments::number(const std::string& name, double absent, double least, double most) const {
  if (!has(name)) {
    return absent;
  }
  const std::string value = text(name);
  char* end = nullptr;
  const double parsed = std::strtod(value.c_str(), &end);
  if (value.empty() || *end != '\0' || !(parsed >= least && parsed <= most)) {
    throw Failure{kUsage, name + " is '" + value + "'",
                  "a number from " + std::to_string(least) + " to " + std::to_string(most)};
  }
  return parsed;
}

std::vector<uint32_t> Arguments::list(const std::string& name, std::vector<uint32_t> absent, uint32_t least,
                                      uint32_t most) const {
  if (!has(name)) {
    return absent;
  }
  std::vector<uint32_t> values;
  const std::string words = text(name);
  for (size_t start = 0; start <= words.size();) {
    const size_t comma = words.find(',', start);
    const size_t end = comma == std::string::npos ? words.size() : comma;
    values.push_back(static_cast<uint32_t>(parse_whole(name, words.substr(start, end - start), least, most)));
    start = end + 1;
  }
  return values;
}

}  // namespace edgekit::runner
