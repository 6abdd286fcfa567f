// Speed of every matrix kernel that this CPU can run: gigabytes of weights a second and billions of products a second.
//
//   gemm_bench [--kernel PART] [--shape M,N,K] [--group G] [--threads T] [--seconds S] [--cached]
//              [--json]
//
// Weights are as many copies of the matrix as fill 256 MiB, taken in turn, so that they come from memory; with --cached
// one copy. Each thread has a share of the tiles and no barrier, so this is what the kernels can do, not a whole model.
// The median of the passes is printed, and the fastest, which is what another busy process leaves alone. The first line
// is the ceiling of as many threads (cpu/read_ceiling.h). --json prints an object a line.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "cpu/read_ceiling.h"
#include "edgekit/cpu.h"
#include "edgekit/gemm.h"

namespace {

constexpr size_t kMemoryBytes = size_t{256} << 20;
constexpr size_t kCeilingRounds = 8;

struct Options {
  std::string kernel;
  std::vector<size_t> shape;  // m, n, k; empty: a list
  size_t group = 128;
  size_t threads = 1;
  double seconds = 0.3;
  bool cached = false;
  bool json = false;
};

struct Aligned {
  explicit Aligned(size_t bytes) : data(static_cast<uint8_t*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64))) {
    for (size_t i = 0; i < bytes; i++) data[i] = static_cast<uint8_t>(i * 2654435761u >> 13);
  }
  Aligned(const Aligned&) = delete;
  Aligned& operator=(const Aligned&) = delete;
  ~Aligned() { std::free(data); }
  uint8_t* data;
};

// Seconds of each pass of `work(thread, pass)` on all threads, for at least as long as asked and three passes.
std::vector<double> time_passes(size_t threads, double seconds, const std::function<void(size_t, size_t)>& work) {
  using Clock = std::chrono::steady_clock;
  std::vector<double> passes;
  std::atomic<size_t> go{0}, done{0};
  std::atomic<bool> stop{false};
  std::vector<std::thread> others;
  for (size_t t = 1; t < threads; t++) {
    others.emplace_back([&, t] {
      for (size_t pass = 1;; pass++) {
        while (go.load(std::memory_order_acquire) < pass) {
          if (stop.load()) return;
        }
        work(t, pass);
        done.fetch_add(1);
      }
    });
  }
  const auto start = Clock::now();
  for (size_t pass = 1; passes.size() < 4 || Clock::now() - start < std::chrono::duration<double>(seconds); pass++) {
    const auto begin = Clock::now();
    go.store(pass, std::memory_order_release);
    work(0, pass);
    while (done.load() < (threads - 1) * pass) {
    }
    passes.push_back(std::chrono::duration<double>(Clock::now() - begin).count());
  }
  stop.store(true);
  for (std::thread& other : others) other.join();
  passes.erase(passes.begin());  // warms caches and pages
  std::sort(passes.begin(), passes.end());
  return passes;
}

struct Figure {
  double median;
  double fastest;
};

Figure figure_of(const std::vector<double>& sorted) {
  return {sorted[sorted.size() / 2], sorted.front()};
}

void print_ceiling(const Options& options) {
  const double ceiling = edgekit::measure_read_ceiling(options.threads, kMemoryBytes, kCeilingRounds);
  if (options.json) {
    std::printf("{\"read_ceiling_bytes_per_second\": %.6g}\n", ceiling);
    return;
  }
  std::printf("%-40s %22s   %7s %7s GB/s   %7s %7s GMAC/s\n", "", "m      n      k  group", "median", "best", "median",
              "best");
  std::printf("%-40s %22s   %7s %7.2f\n", "read ceiling", "", "", ceiling / 1e9);
}

void measure(const edgekit_gemm_kernel& kernel, const Options& options, size_t m, size_t n, size_t k) {
  const bool floats = kernel.weights == EDGEKIT_F32 || kernel.weights == EDGEKIT_F16;
  const size_t tiles = n / 16;
  const size_t groups = floats ? 0 : (k + options.group - 1) / options.group;
  const size_t code_bytes = tiles * edgekit_tile_code_bytes(kernel.weights, k);
  const size_t scale_bytes = tiles * edgekit_tile_scale_bytes(kernel.weights, k, options.group);
  const size_t copies = options.cached || m > 1 ? 1 : std::max<size_t>(1, kMemoryBytes / (code_bytes + scale_bytes));
  Aligned codes(copies * code_bytes), scales(copies * scale_bytes + 64), a(m * k * 4);
  std::vector<float> a_scale(m * groups + 1, 0.01f), c(m * n);
  std::vector<int32_t> a_sum(m * groups + 1, 1);
  // Bytes of any kind are codes; as floats they would be infinities and subnormals, which cost time of their own.
  if (floats) {
    std::memset(codes.data, 0x3c, copies * code_bytes);
    std::memset(a.data, 0x3c, m * k * 4);
  }
  for (size_t i = 0; i < scale_bytes * copies / 2; i++) reinterpret_cast<uint16_t*>(scales.data)[i] = 0x3c00;
  const auto work = [&](size_t thread, size_t) {
    edgekit_gemm_args args = {};
    args.m = m;
    args.k = k;
    args.group = options.group;
    args.tile_begin = tiles * thread / options.threads;
    args.tile_end = tiles * (thread + 1) / options.threads;
    args.a = a.data;
    args.a_stride = k;
    args.a_scale = a_scale.data();
    args.a_sum = a_sum.data();
    args.c = c.data() + args.tile_begin * 16;
    args.c_stride = n;
    for (size_t copy = 0; copy < copies; copy++) {
      args.codes = codes.data + copy * code_bytes;
      args.scales = reinterpret_cast<const uint16_t*>(scales.data + copy * scale_bytes);
      kernel.run(&args);
    }
  };
  const Figure figure = figure_of(time_passes(options.threads, options.seconds, work));
  if (options.json) {
    const double count = static_cast<double>(copies);
    std::printf("{\"kernel\": \"%s\", \"m\": %zu, \"n\": %zu, \"k\": %zu, \"group\": %zu, \"threads\": %zu, "
                "\"copies\": %zu, \"bytes\": %zu, \"median_seconds\": %.6g, \"fastest_seconds\": %.6g}\n",
                kernel.name, m, n, k, floats ? size_t{0} : options.group, options.threads, copies,
                code_bytes + scale_bytes, figure.median / count, figure.fastest / count);
    std::fflush(stdout);
    return;
  }
  const double bytes = static_cast<double>((code_bytes + scale_bytes) * copies);
  const double products = static_cast<double>(m * n * k * copies);
  std::printf("%-40s %3zu %6zu %6zu   %4zu   %7.2f %7.2f        %7.2f %7.2f\n", kernel.name, m, n, k,
              floats ? size_t{0} : options.group, bytes / figure.median / 1e9, bytes / figure.fastest / 1e9,
              products / figure.median / 1e9, products / figure.fastest / 1e9);
  std::fflush(stdout);
}

bool parse(int argc, char** argv, Options* options) {
  for (int i = 1; i < argc; i++) {
    const std::string name = argv[i];
    if (name == "--cached" || name == "--json") {
      (name == "--json" ? options->json : options->cached) = true;
      continue;
    }
    if (i + 1 >= argc) return false;
    const std::string value = argv[++i];
    if (name == "--kernel") options->kernel = value;
    else if (name == "--group") options->group = std::strtoul(value.c_str(), nullptr, 10);
    else if (name == "--threads") options->threads = std::strtoul(value.c_str(), nullptr, 10);
    else if (name == "--seconds") options->seconds = std::strtod(value.c_str(), nullptr);
    else if (name == "--shape") {
      size_t m = 0, n = 0, k = 0;
      if (std::sscanf(value.c_str(), "%zu,%zu,%zu", &m, &n, &k) != 3) return false;
      options->shape = {m, n, k};
      if (m == 0 || n == 0 || n % 16 != 0 || k == 0 || k % 32 != 0) return false;
    } else return false;
  }
  return options->threads > 0 && (options->group == 32 || options->group == 64 || options->group == 128);
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  if (!parse(argc, argv, &options)) {
    std::fprintf(stderr,
                 "usage: gemm_bench [--kernel PART] [--shape M,N,K] [--group 32|64|128] [--threads T] [--seconds S] "
                 "[--cached] [--json]\nhint: N is a multiple of 16, K of 32\n");
    return 2;
  }
  const std::vector<std::vector<size_t>> decode = {{1, 2048, 5632}, {1, 576, 1536}};
  const std::vector<std::vector<size_t>> prefill = {{8, 2048, 5632}, {64, 2048, 5632}, {256, 2048, 5632}};
  print_ceiling(options);
  size_t count = 0;
  const edgekit_gemm_kernel* kernels = edgekit_gemm_kernels(&count);
  for (size_t i = 0; i < count; i++) {
    const bool runs = (kernels[i].features & ~edgekit_cpu_features()) == 0;
    if (!runs || std::strstr(kernels[i].name, options.kernel.c_str()) == nullptr) continue;
    if (!options.shape.empty()) {
      measure(kernels[i], options, options.shape[0], options.shape[1], options.shape[2]);
      continue;
    }
    for (const auto& shape : kernels[i].mr == 1 ? decode : prefill) {
      measure(kernels[i], options, shape[0], shape[1], shape[2]);
    }
  }
  return 0;
}
