#include "model.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "calibration.h"
#include "clock.h"
#include "edgekit/cpu.h"
#include "failure.h"

namespace edgekit::runner {

Model::Model(const std::string& path) : path_(path) {
  const double start = seconds_now();
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) {
    throw Failure{kUsage, "'" + path + "' cannot be opened: " + std::strerror(errno),
                  "give the model.edge of a bundle that edgekit compile wrote"};
  }
  struct stat status {};
  const bool is_file = fstat(file, &status) == 0 && S_ISREG(status.st_mode);
  bytes_ = is_file ? static_cast<size_t>(status.st_size) : 0;
  data_ = bytes_ > 0 ? mmap(nullptr, bytes_, PROT_READ, MAP_SHARED, file, 0) : MAP_FAILED;
  close(file);
  if (data_ == MAP_FAILED) {
    data_ = nullptr;
    throw Failure{bytes_ > 0 ? kDoesNotFit : kDamaged, "'" + path + "' is not a file that can be mapped into memory",
                  "give the model.edge of a bundle that edgekit compile wrote"};
  }
  edgekit_error error{};
  const edgekit_status opened = edgekit_program_open(static_cast<const uint8_t*>(data_), bytes_, &program_, &error);
  if (opened != EDGEKIT_OK) {
    munmap(data_, bytes_);
    fail(opened, error, path);
  }
  load_seconds_ = seconds_now() - start;
}

Model::~Model() {
  edgekit_program_close(program_);
  munmap(data_, bytes_);
}

const tokenizer::Tokenizer& Model::tokenizer() {
  if (!tokenizer_open_) {
    if (info().tokenizer == nullptr) {
      throw Failure{kUsage, "this model has no tokenizer", "give --tokens"};
    }
    edgekit_error error{};
    const edgekit_status status = tokenizer_.open(info().tokenizer, info().tokenizer_bytes, &error);
    if (status != EDGEKIT_OK) {
      fail(status, error, path_);
    }
    tokenizer_open_ = true;
  }
  return tokenizer_;
}

bool Model::ends_text(uint32_t token) const {
  for (uint32_t i = 0; i < info().eos_count; ++i) {
    if (info().eos[i] == token) {
      return true;
    }
  }
  return false;
}

void Model::expect_use() const {
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t start = reinterpret_cast<uintptr_t>(info().weights) / page * page;
  madvise(reinterpret_cast<void*>(start), reinterpret_cast<uintptr_t>(data_) + bytes_ - start, MADV_WILLNEED);
}

Session::Session(const Model& model, edgekit_session_options options)
    : path_(model.path()),
      decode_threads_from_(options.decode_threads > 0 ? ThreadsFrom::kAsked : ThreadsFrom::kPlan),
      prefill_threads_from_(options.prefill_threads > 0 ? ThreadsFrom::kAsked : ThreadsFrom::kPlan) {
  const double start = seconds_now();
  model.expect_use();
  calibrate(model, &options);
  edgekit_error error{};
  const edgekit_status status = edgekit_session_create(model.program(), &options, &session_, &error);
  if (status != EDGEKIT_OK) {
    fail(status, error, path_);
  }
  create_seconds_ = seconds_now() - start;
}

void Session::calibrate(const Model& model, edgekit_session_options* options) {
  if (options->decode_threads > 0 && options->prefill_threads > 0) {
    return;
  }
  const Calibration found = find_calibration(model, &calibration_doubt_);
  if (found.decode_threads == 0) {
    return;
  }
  const uint32_t cpus = CpuSpeeds::read().count();
  const auto take = [&](uint32_t calibrated, uint32_t* threads, ThreadsFrom* from) {
    if (*threads == 0) {
      *threads = std::min(calibrated, cpus);
      *from = ThreadsFrom::kCalibrated;
      options->keep_to_fast_cpus = 1;
    }
  };
  take(found.decode_threads, &options->decode_threads, &decode_threads_from_);
  take(found.prefill_threads, &options->prefill_threads, &prefill_threads_from_);
}

Session::~Session() { edgekit_session_free(session_); }

void Session::forward(const uint32_t* tokens, size_t count, float* logits, size_t logits_rows) {
  edgekit_error error{};
  const edgekit_status status = edgekit_session_forward(session_, tokens, count, logits, logits_rows, &error);
  if (status != EDGEKIT_OK) {
    fail(status, error, path_);
  }
}

void Session::reset(uint32_t position) {
  edgekit_error error{};
  const edgekit_status status = edgekit_session_reset(session_, position, &error);
  if (status != EDGEKIT_OK) {
    fail(status, error, path_);
  }
}

void Session::set_threads(uint32_t decode, uint32_t prefill) {
  edgekit_error error{};
  const edgekit_status status = edgekit_session_set_threads(session_, decode, prefill, &error);
  if (status != EDGEKIT_OK) {
    fail(status, error, path_);
  }
}

edgekit_kv_format read_kv_format(const Arguments& arguments) {
  const std::string name = arguments.text("--kv", "");
  for (const edgekit_kv_format format : {EDGEKIT_KV_F16, EDGEKIT_KV_Q8}) {
    if (name == name_of(format)) {
      return format;
    }
  }
  if (arguments.has("--kv")) {
    throw Failure{kUsage, "--kv is '" + name + "'", "one of: f16, q8"};
  }
  return EDGEKIT_KV_AS_PLANNED;
}

const char* name_of(edgekit_kv_format format) { return format == EDGEKIT_KV_Q8 ? "q8" : "f16"; }

edgekit_session_options read_session_options(const Arguments& arguments, const Model& model) {
  edgekit_session_options options{};
  options.context = static_cast<uint32_t>(arguments.whole("--context", 0, 1, model.info().context));
  options.decode_threads = static_cast<uint32_t>(arguments.whole("--threads", 0, 1, EDGEKIT_MOST_THREADS));
  options.prefill_threads =
      static_cast<uint32_t>(arguments.whole("--prefill-threads", options.decode_threads, 1, EDGEKIT_MOST_THREADS));
  options.spin_microseconds = UINT32_MAX;
  options.kv_format = read_kv_format(arguments);
  return options;
}

const ops::Ops& ops_here() { return ops::choose_ops(edgekit_cpu_features()); }

std::string read_whole(const std::string& path, size_t most_bytes) {
  std::FILE* file = path == "-" ? stdin : std::fopen(path.c_str(), "rb");
  if (file == nullptr) {
    throw Failure{kUsage, "'" + path + "' cannot be opened: " + std::strerror(errno), ""};
  }
  std::string text;
  char part[65536];
  for (size_t got = 1; got > 0 && text.size() <= most_bytes;) {
    got = std::fread(part, 1, sizeof part, file);
    text.append(part, got);
  }
  const bool failed = std::ferror(file) != 0;
  if (file != stdin) {
    std::fclose(file);
  }
  if (failed || text.size() > most_bytes) {
    throw Failure{kUsage, "'" + path + (failed ? "' cannot be read" : "' is too long"),
                  "at most " + std::to_string(most_bytes) + " bytes are read"};
  }
  return text;
}

}  // namespace edgekit::runner
