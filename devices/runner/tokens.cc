// Text to ids and ids to text, through the model's own tokenizer.
#include <cstdio>
#include <cstdlib>

#include "failure.h"
#include "model.h"
#include "verbs.h"

namespace edgekit::runner {
namespace {

constexpr size_t kMostTextBytes = 256 << 20;

}  // namespace

void tokenize(int count, char** words) {
  const Arguments arguments(count, words, {{"--raw", Takes::kNothing}});
  Model model(arguments.file());
  std::vector<uint32_t> ids;
  edgekit_error error{};
  const std::string text = read_whole("-", kMostTextBytes);
  const edgekit_status status = model.tokenizer().encode(text, !arguments.has("--raw"), &ids, &error);
  if (status != EDGEKIT_OK) {
    fail(status, error, model.path());
  }
  for (const uint32_t id : ids) {
    std::printf("%u\n", id);
  }
}

void detokenize(int count, char** words) {
  const Arguments arguments(count, words, {});
  Model model(arguments.file());
  tokenizer::Decoder decoder(model.tokenizer(), tokenizer::Decoder::Pace::kExact);
  const std::string text = read_whole("-", kMostTextBytes);
  std::string decoded;
  for (const char* at = text.c_str(); *at != '\0';) {
    if (*at == ' ' || *at == '\n' || *at == '\r' || *at == '\t') {
      ++at;
      continue;
    }
    char* end = nullptr;
    const unsigned long long id = std::strtoull(at, &end, 10);
    if (end == at || id >= model.info().vocab) {
      throw Failure{kUsage, "the input is not a list of tokens",
                    "whole numbers below " + std::to_string(model.info().vocab) + " with white space between them"};
    }
    decoded += decoder.push(static_cast<uint32_t>(id));
    at = end;
  }
  decoded += decoder.finish();
  std::fwrite(decoded.data(), 1, decoded.size(), stdout);
}

}  // namespace edgekit::runner
