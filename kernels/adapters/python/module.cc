// The Python module edgekit._kernels: the kernel table, packing, quantizing, and single products for tests.
//
// Arrays are checked here, once; edgekit/kernels.py gives the functions names and types for Python.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "cpu/read_ceiling.h"
#include "edgekit/cpu.h"
#include "edgekit/gemm.h"

namespace nb = nanobind;

namespace {

template <typename T>
using Matrix = nb::ndarray<const T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
template <typename T>
using Vector = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Anything = nb::ndarray<nb::ro, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
template <typename T>
using Result = nb::ndarray<nb::numpy, T>;

constexpr size_t kAlign = 64;

struct AlignedDelete {
  void operator()(void* memory) const { ::operator delete[](memory, std::align_val_t{kAlign}); }
};
template <typename T>
using Buffer = std::unique_ptr<T[], AlignedDelete>;

template <typename T>
Buffer<T> buffer(size_t count) {
  const size_t bytes = std::max<size_t>(1, count) * sizeof(T);
  return Buffer<T>(static_cast<T*>(::operator new[](bytes, std::align_val_t{kAlign})));
}

template <typename T>
Result<T> result(Buffer<T> data, std::initializer_list<size_t> shape) {
  T* memory = data.release();
  nb::capsule owner(memory, [](void* p) noexcept { AlignedDelete()(p); });
  return Result<T>(memory, shape, owner);
}

void require(bool holds, const char* message) {
  if (!holds) throw nb::value_error(message);
}

edgekit_format format_of(int number) {
  require(number >= EDGEKIT_F32 && number <= EDGEKIT_T2, "unknown weight format");
  return static_cast<edgekit_format>(number);
}

bool is_float(edgekit_format format) { return format == EDGEKIT_F32 || format == EDGEKIT_F16; }

size_t tiles_of(size_t n) { return (n + EDGEKIT_TILE - 1) / EDGEKIT_TILE; }

// Runs work(begin, end) over [0, count) on `threads` threads, in ranges that are multiples of `step`.
template <typename Work>
void split(size_t count, size_t step, size_t threads, const Work& work) {
  const size_t steps = (count + step - 1) / step;
  threads = std::clamp<size_t>(threads, 1, std::max<size_t>(steps, 1));
  std::vector<std::thread> pool;
  for (size_t t = 1; t < threads; ++t) {
    pool.emplace_back([&, t] { work(steps * t / threads * step, std::min(count, steps * (t + 1) / threads * step)); });
  }
  work(0, std::min(count, steps / threads * step));
  for (std::thread& thread : pool) thread.join();
}

nb::list catalogue() {
  size_t count = 0;
  const edgekit_gemm_kernel* kernels = edgekit_gemm_kernels(&count);
  nb::list rows;
  for (size_t i = 0; i < count; ++i) {
    const edgekit_gemm_kernel& kernel = kernels[i];
    rows.append(nb::make_tuple(kernel.name, static_cast<int>(kernel.weights), kernel.mr, kernel.features,
                               kernel.run != nullptr));
  }
  return rows;
}

size_t element_bytes(edgekit_format format) { return format == EDGEKIT_F32 ? 4 : format == EDGEKIT_F16 ? 2 : 1; }

Result<uint8_t> pack_codes(int format_number, const Anything& codes, size_t threads) {
  const edgekit_format format = format_of(format_number);
  require(codes.itemsize() == element_bytes(format), "codes have the wrong element size for the format");
  const size_t n = codes.shape(0), k = codes.shape(1);
  const size_t tile_bytes = edgekit_tile_code_bytes(format, k);
  auto packed = buffer<uint8_t>(tiles_of(n) * tile_bytes);
  {
    nb::gil_scoped_release release;
    const auto* rows = static_cast<const uint8_t*>(codes.data());
    split(n, EDGEKIT_TILE, threads, [&](size_t begin, size_t end) {
      if (begin < end) {
        edgekit_pack_codes(format, end - begin, k, rows + begin * k * element_bytes(format),
                           packed.get() + begin / EDGEKIT_TILE * tile_bytes);
      }
    });
  }
  return result(std::move(packed), {tiles_of(n), tile_bytes});
}

Result<uint16_t> pack_scales(const Matrix<uint16_t>& scales) {
  const size_t n = scales.shape(0), groups = scales.shape(1);
  auto packed = buffer<uint16_t>(tiles_of(n) * groups * EDGEKIT_TILE);
  edgekit_pack_scales(n, groups, scales.data(), packed.get());
  return result(std::move(packed), {tiles_of(n), groups * EDGEKIT_TILE});
}

// The packed streams of one matrix and what they must hold.
struct Packed {
  edgekit_format format;
  size_t n, k, group, groups;
  const uint8_t* codes;
  const uint16_t* scales;
};

Packed packed_matrix(int format_number, size_t n, size_t k, size_t group, const Matrix<uint8_t>& codes,
                     const Matrix<uint16_t>& scales) {
  const edgekit_format format = format_of(format_number);
  require(n > 0 && k > 0, "an empty matrix");
  require(is_float(format) || group == 32 || group == 64 || group == 128, "the group is not 32, 64 or 128");
  const size_t groups = is_float(format) ? 0 : (k + group - 1) / group;
  require(codes.shape(0) == tiles_of(n) && codes.shape(1) == edgekit_tile_code_bytes(format, k),
          "the codes do not have the size of the matrix");
  require(is_float(format) || (scales.shape(0) == tiles_of(n) && scales.shape(1) == groups * EDGEKIT_TILE),
          "the scales do not have the size of the matrix");
  return {format, n, k, group, groups, codes.data(), scales.data()};
}

Result<float> unpack(int format_number, size_t n, size_t k, size_t group, const Matrix<uint8_t>& codes,
                     const Matrix<uint16_t>& scales) {
  const Packed matrix = packed_matrix(format_number, n, k, group, codes, scales);
  auto values = buffer<float>(n * k);
  for (size_t row = 0; row < n; ++row) {
    edgekit_unpack_row(matrix.format, k, group, matrix.codes, matrix.scales, row, values.get() + row * k);
  }
  return result(std::move(values), {n, k});
}

nb::tuple quantize_weights(int format_number, const Matrix<float>& weights, size_t group, size_t steps,
                           const std::optional<Vector<float>>& importance, size_t threads) {
  const edgekit_format format = format_of(format_number);
  require(!is_float(format), "floats are not quantized");
  require(group == 32 || group == 64 || group == 128, "the group is not 32, 64 or 128");
  require(steps >= 1, "at least one step must be tried");
  const size_t n = weights.shape(0), k = weights.shape(1), groups = (k + group - 1) / group;
  require(!importance || importance->shape(0) == k, "the importance does not have one value a column");
  auto codes = buffer<int8_t>(n * k);
  auto scales = buffer<uint16_t>(n * groups);
  {
    nb::gil_scoped_release release;
    const float* weigh = importance ? importance->data() : nullptr;
    split(n, 1, threads, [&](size_t begin, size_t end) {
      if (begin < end) {
        edgekit_quantize_weights(format, end - begin, k, group, steps, weights.data() + begin * k, weigh,
                                 codes.get() + begin * k, scales.get() + begin * groups);
      }
    });
  }
  return nb::make_tuple(result(std::move(codes), {n, k}), result(std::move(scales), {n, groups}));
}

// c = a w^T with the kernel `name`; float activations are quantized first, as the runner does. For tests.
Result<float> gemm(const std::string& name, const Matrix<float>& a, size_t n, size_t group,
                   const Matrix<uint8_t>& codes, const Matrix<uint16_t>& scales) {
  const edgekit_gemm_kernel* kernel = edgekit_gemm_find(name.c_str());
  require(kernel != nullptr, "no kernel of that name");
  require(kernel->run != nullptr && (kernel->features & ~edgekit_cpu_features()) == 0,
          "this CPU cannot run that kernel");
  const size_t m = a.shape(0), k = a.shape(1);
  const Packed matrix = packed_matrix(kernel->weights, n, k, group, codes, scales);
  const size_t k_padded = (k + EDGEKIT_K_UNIT - 1) / EDGEKIT_K_UNIT * EDGEKIT_K_UNIT;
  const size_t a_stride = (k_padded + kAlign - 1) / kAlign * kAlign;
  const size_t c_stride = tiles_of(n) * EDGEKIT_TILE;

  auto c = buffer<float>(m * c_stride);
  auto a_float = buffer<float>(m * a_stride);
  auto a_codes = buffer<int8_t>(m * a_stride);
  auto a_scale = buffer<float>(m * matrix.groups);
  auto a_sum = buffer<int32_t>(m * matrix.groups);
  for (size_t row = 0; row < m; ++row) {
    const float* x = a.data() + row * k;
    std::fill_n(a_float.get() + row * a_stride, a_stride, 0.0f);
    std::copy_n(x, k, a_float.get() + row * a_stride);
    if (!is_float(matrix.format)) {
      std::fill_n(a_codes.get() + row * a_stride, a_stride, static_cast<int8_t>(0));
      edgekit_quantize_row(k, k_padded, group, x, a_codes.get() + row * a_stride, a_scale.get() + row * matrix.groups,
                           a_sum.get() + row * matrix.groups);
    }
  }
  edgekit_gemm_args args{};
  args.m = m;
  args.k = is_float(matrix.format) ? k : k_padded;
  args.group = group;
  args.tile_end = tiles_of(n);
  args.a = is_float(matrix.format) ? static_cast<const void*>(a_float.get()) : a_codes.get();
  args.a_stride = a_stride;
  args.a_scale = a_scale.get();
  args.a_sum = a_sum.get();
  args.codes = matrix.codes;
  args.scales = matrix.scales;
  args.c = c.get();
  args.c_stride = c_stride;
  kernel->run(&args);

  auto trimmed = buffer<float>(m * n);
  for (size_t row = 0; row < m; ++row) std::copy_n(c.get() + row * c_stride, n, trimmed.get() + row * n);
  return result(std::move(trimmed), {m, n});
}

double read_ceiling(size_t threads, size_t bytes, size_t rounds) {
  require(threads >= 1 && threads <= 1024, "threads must be 1 to 1024");
  nb::gil_scoped_release release;
  return edgekit::measure_read_ceiling(threads, bytes, rounds);
}

}  // namespace

NB_MODULE(_kernels, module) {
  module.def("catalogue", &catalogue);
  module.def("cpu_features", &edgekit_cpu_features);
  module.def("isa_features", [](const std::string& word) { return edgekit_isa_features(word.c_str()); });
  module.def("tile_code_bytes", [](int format, size_t k) { return edgekit_tile_code_bytes(format_of(format), k); });
  module.def("tile_scale_bytes",
             [](int format, size_t k, size_t group) { return edgekit_tile_scale_bytes(format_of(format), k, group); });
  module.def("pack_codes", &pack_codes, nb::arg("format"), nb::arg("codes"), nb::arg("threads"));
  module.def("pack_scales", &pack_scales, nb::arg("scales"));
  module.def("unpack", &unpack, nb::arg("format"), nb::arg("n"), nb::arg("k"), nb::arg("group"), nb::arg("codes"),
             nb::arg("scales"));
  module.def("quantize_weights", &quantize_weights, nb::arg("format"), nb::arg("weights"), nb::arg("group"),
             nb::arg("steps"), nb::arg("importance").none(), nb::arg("threads"));
  module.def("gemm", &gemm, nb::arg("name"), nb::arg("a"), nb::arg("n"), nb::arg("group"), nb::arg("codes"),
             nb::arg("scales"));
  module.def("read_ceiling", &read_ceiling, nb::arg("threads"), nb::arg("bytes"), nb::arg("rounds"));
}
