// Continues a prompt.
#include <cstdio>

#include "clock.h"
#include "failure.h"
#include "measurement.h"
#include "ops/sampling.h"
#include "verbs.h"

namespace edgekit::runner {
namespace {

constexpr size_t kMostPromptBytes = 16 << 20;
constexpr uint64_t kMostTokens = 1 << 20;
constexpr uint64_t kDefaultTokens = 128;

// Takes away what ends the text where the tokenizer's template puts it after every text: the answer continues the text.
void leave_open(Model& model, std::vector<uint32_t>* tokens) {
  for (size_t i = model.tokenizer().ids_after_text(); i > 0 && model.ends_text(tokens->back()); --i) {
    tokens->pop_back();
  }
}

std::vector<uint32_t> read_prompt(const Arguments& arguments, Model* model) {
  const int given = (arguments.has("--prompt") ? 1 : 0) + (arguments.has("--prompt-file") ? 1 : 0) +
                    (arguments.has("--tokens") ? 1 : 0);
  if (given != 1) {
    throw Failure{kUsage, given == 0 ? "no prompt is given" : "more than one prompt is given",
                  "one of: --prompt TEXT, --prompt-file FILE, --tokens 1,2,3"};
  }
  std::vector<uint32_t> tokens;
  if (arguments.has("--tokens")) {
    tokens = arguments.list("--tokens", {}, 0, model->info().vocab - 1);
  } else {
    const std::string text = arguments.has("--prompt") ? arguments.text("--prompt")
                                                       : read_whole(arguments.text("--prompt-file"), kMostPromptBytes);
    edgekit_error error{};
    const edgekit_status status = model->tokenizer().encode(text, !arguments.has("--raw"), &tokens, &error);
    if (status != EDGEKIT_OK) {
      fail(status, error, model->path());
    }
    if (!arguments.has("--raw")) {
      leave_open(*model, &tokens);
    }
  }
  if (tokens.empty() && model->info().bos != EDGEKIT_NO_TOKEN) {
    tokens.push_back(model->info().bos);
  }
  if (tokens.empty()) {
    throw Failure{kUsage, "the prompt is empty", "this model has no token that starts a text; give it some"};
  }
  return tokens;
}

ops::SamplingOptions read_sampling(const Arguments& arguments) {
  ops::SamplingOptions options;
  options.temperature = static_cast<float>(arguments.number("--temperature", options.temperature, 0, 100));
  options.top_k = static_cast<uint32_t>(arguments.whole("--top-k", options.top_k, 0, UINT32_MAX));
  options.top_p = static_cast<float>(arguments.number("--top-p", options.top_p, 0, 1));
  options.repetition_penalty =
      static_cast<float>(arguments.number("--repetition-penalty", options.repetition_penalty, 0.01, 100));
  options.seed = arguments.whole("--seed", options.seed, 0, UINT64_MAX);
  return options;
}

// Gives the text of tokens as it becomes whole. What the prompt leaves open continues in the answer.
class Printer {
 public:
  Printer(Model* model, bool prints, const std::vector<uint32_t>& prompt) : prints_(prints) {
    if (model->info().tokenizer != nullptr) {
      decoder_ = std::make_unique<tokenizer::Decoder>(model->tokenizer(), tokenizer::Decoder::Pace::kStream, true);
      for (const uint32_t token : prompt) {
        decoder_->push(token);
      }
    }
  }

  void push(uint32_t token) {
    if (decoder_ != nullptr) {
      show(decoder_->push(token));
    }
  }

  void finish() {
    if (decoder_ != nullptr) {
      show(decoder_->finish());
    }
    if (prints_) {
      std::fputc('\n', stdout);
      std::fflush(stdout);
    }
  }

  const std::string& text() const { return text_; }

 private:
  void show(const std::string& piece) {
    text_ += piece;
    if (prints_ && !piece.empty()) {
      std::fwrite(piece.data(), 1, piece.size(), stdout);
      std::fflush(stdout);
    }
  }

  bool prints_;
  std::unique_ptr<tokenizer::Decoder> decoder_;
  std::string text_;
};

struct Answer {
  std::vector<uint32_t> tokens;
  const char* stop = "length";
  Latency latency;
  bool context_was_full = false;
};

Answer answer(const std::vector<uint32_t>& prompt, size_t most, const Model& model, Session* session,
              ops::Sampler* sampler, Printer* printer) {
  Answer made;
  std::vector<float> logits(model.info().vocab);
  double start = seconds_now();
  session->forward(prompt.data(), prompt.size(), logits.data(), 1);
  made.latency.prefill_tokens = prompt.size();
  made.latency.prefill_seconds = seconds_now() - start;
  while (made.tokens.size() < most) {
    const uint32_t token = sampler->sample(logits.data());
    if (made.tokens.empty()) {
      made.latency.ttft_seconds = seconds_now() - start;
    } else {
      made.latency.token_seconds.push_back(seconds_now() - start);
    }
    stop_if_interrupted();
    made.tokens.push_back(token);
    if (model.ends_text(token)) {
      made.stop = "eos";
      break;
    }
    printer->push(token);
    if (made.tokens.size() == most) {
      break;
    }
    if (session->position() == session->context()) {
      made.context_was_full = true;
      break;
    }
    sampler->see(token);
    start = seconds_now();
    session->forward(&token, 1, logits.data(), 1);
  }
  printer->finish();
  return made;
}

}  // namespace

void generate(int count, char** words) {
  const Arguments arguments(count, words,
                            {{"--prompt"}, {"--prompt-file"}, {"--tokens"}, {"-n"}, {"--temperature"}, {"--top-k"},
                             {"--top-p"}, {"--repetition-penalty"}, {"--seed"}, {"--raw", Takes::kNothing}, kThreads,
                             kPrefillThreads, kContext, kKv, kJson});
  Model model(arguments.file());
  const std::vector<uint32_t> prompt = read_prompt(arguments, &model);
  Session session(model, read_session_options(arguments, model));
  if (prompt.size() > session.context()) {
    throw Failure{kUsage,
                  "the prompt has " + std::to_string(prompt.size()) + " tokens and the context holds " +
                      std::to_string(session.context()),
                  "--context can be as much as " + std::to_string(model.info().context)};
  }
  ops::Sampler sampler(ops_here(), model.info().vocab, read_sampling(arguments));
  if (!sampler.ok()) {
    throw Failure{kDoesNotFit, "there is no memory to sample with", ""};
  }
  for (const uint32_t token : prompt) {
    sampler.see(token);
  }
  Measurement measurement(model, session);
  const std::string json_path = arguments.text("--json");
  Printer printer(&model, json_path != "-", prompt);
  const size_t most = arguments.whole("-n", kDefaultTokens, 1, kMostTokens);
  Answer made = answer(prompt, most, model, &session, &sampler, &printer);
  made.latency.load_seconds = model.load_seconds() + session.create_seconds();
  if (made.context_was_full) {
    measurement.warn("the context of " + std::to_string(session.context()) + " tokens was full before the end");
  }
  if (json_path.empty()) {
    return measurement.print_warnings();
  }
  measurement.finish();
  Json json;
  json.open_object();
  json.list("tokens", made.tokens).list("prompt_tokens", prompt);
  json.member("text", printer.text()).member("stop", made.stop);
  measurement.write_latency(made.latency, &json);
  measurement.write_memory(&json);
  json.key("bandwidth").open_object().member("bytes_per_token", model.info().bytes_per_token);
  if (!made.latency.token_seconds.empty()) {
    double total = 0;
    for (const double seconds : made.latency.token_seconds) {
      total += seconds;
    }
    const size_t count = made.latency.token_seconds.size();
    uint64_t bytes = count * model.info().bytes_per_token;
    for (size_t i = 0; i < count; ++i) {
      bytes += session.attended_bytes(static_cast<uint32_t>(prompt.size() + i));
    }
    json.member("bytes_per_second", static_cast<double>(bytes) / total);
  }
  json.close_object();
  measurement.write_device(&json);
  measurement.write_kernels(&json);
  measurement.write_warnings(&json);
  json.close_object();
  write_text(json_path, json.text());
}

}  // namespace edgekit::runner
