// Writes the logits of every position of a given text.
#include <algorithm>
#include <cstdio>
#include <cstring>

#include "failure.h"
#include "model.h"
#include "verbs.h"

namespace edgekit::runner {
namespace {

constexpr size_t kMostTokenBytes = 64 << 20;
constexpr uint64_t kDefaultRows = 32;  // of logits in memory at once

std::vector<uint32_t> read_tokens(const std::string& path, uint32_t vocab) {
  const std::string bytes = read_whole(path, kMostTokenBytes);
  std::vector<uint32_t> tokens(bytes.size() / sizeof(uint32_t));
  std::memcpy(tokens.data(), bytes.data(), tokens.size() * sizeof(uint32_t));
  const bool all_known = std::all_of(tokens.begin(), tokens.end(), [&](uint32_t token) { return token < vocab; });
  if (tokens.empty() || bytes.size() % sizeof(uint32_t) != 0 || !all_known) {
    throw Failure{kUsage, "'" + path + "' is not a list of tokens",
                  "32-bit little-endian numbers below " + std::to_string(vocab)};
  }
  return tokens;
}

}  // namespace

void logits(int count, char** words) {
  const Arguments arguments(
      count, words, {{"--token-file"}, {"--out"}, {"--chunk"}, {"--start"}, kThreads, kPrefillThreads, kContext, kKv});
  const Model model(arguments.file());
  if (!arguments.has("--token-file") || !arguments.has("--out")) {
    throw Failure{kUsage, "--token-file and --out are both needed", ""};
  }
  const std::vector<uint32_t> tokens = read_tokens(arguments.text("--token-file"), model.info().vocab);
  edgekit_session_options options = read_session_options(arguments, model);
  if (options.context == 0) {
    options.context = static_cast<uint32_t>(std::min<size_t>(tokens.size(), model.info().context));
  }
  if (tokens.size() > options.context) {
    throw Failure{kUsage,
                  "the text has " + std::to_string(tokens.size()) + " tokens and the context holds " +
                      std::to_string(options.context),
                  "cut it into shorter ones"};
  }
  const size_t chunk = arguments.whole("--chunk", kDefaultRows, 1, model.info().context);
  const size_t first = arguments.whole("--start", 0, 0, tokens.size());
  Session session(model, options);
  const std::string path = arguments.text("--out");
  std::FILE* file = path == "-" ? stdout : std::fopen(path.c_str(), "wb");
  if (file == nullptr) {
    throw Failure{kUsage, "'" + path + "' cannot be written", "name a file in a folder that you may write to"};
  }
  std::vector<float> rows;
  bool written = true;
  for (size_t done = 0; done < tokens.size() && written;) {
    stop_if_interrupted();
    const size_t length = std::min(chunk, tokens.size() - done);
    const size_t wanted = done + length > first ? std::min(length, done + length - first) : 0;
    rows.resize(wanted * model.info().vocab);
    session.forward(&tokens[done], length, rows.data(), wanted);
    written = rows.empty() || std::fwrite(rows.data(), sizeof(float), rows.size(), file) == rows.size();
    done += length;
  }
  if ((file == stdout ? std::fflush(file) : std::fclose(file)) != 0 || !written) {
    throw Failure{kUsage, "'" + path + "' cannot be written to its end", "is the disk full?"};
  }
}

}  // namespace edgekit::runner
