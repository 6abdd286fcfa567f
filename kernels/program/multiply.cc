// Products of rows with the matrices of a step.
//
// One row (m = 1): every thread that gets a piece norms and quantizes the row for itself, which is cheaper than
// waiting. More rows: norm and quantization are a phase of their own, divided by rows.
#include <string.h>

#include "program/division.h"
#include "program/worker.h"

namespace edgekit {
namespace {

using format::OperatorKind;

constexpr size_t kPieceBytes = 16384;  // of weights, when m == 1: what the last pieces of a product have

class Product {
 public:
  explicit Product(Worker& worker)
      : worker_(worker),
        session_(worker.session),
        info_(worker.info),
        ops_(worker.ops),
        scratch_(worker.scratch) {}

  // Rows [first, first + m) of the step's input through its matrices. `out` [m][stride] for plain results.
  void multiply_rows(const Step& step, size_t first, size_t m, float* out, size_t stride) {
    Activations activations[kMostWeights];
    uint8_t* memory = m == 1 ? scratch_.activations_memory : session_.activations_memory;
    for (size_t f = 0; f < step.forms; ++f) {
      memory += lay_out_activations(step.form[f], m, memory, &activations[f]);
      if (reads_in_place(step, step.form[f])) {
        activations[f].values = worker_.row_of(step.input, first);
        activations[f].stride = step.input.width;
      }
    }
    if (m > 1) {
      worker_.share_rows(
          0, m, [&](size_t row) { form_row(step, worker_.row_of(step.input, first + row), row, activations); });
    }
    multiply_pieces(step, activations, first, m, out, stride);
  }

 private:
  static bool reads_in_place(const Step& step, const ActivationForm& form) {
    return form.is_float && step.norm == nullptr;
  }

  // Norms a row, if the step does, and puts it where each form wants it.
  void form_row(const Step& step, const float* input, size_t row, const Activations* activations) {
    const float* values = input;
    if (step.norm != nullptr) {
      ops_.rms_norm(info_.hidden, input, step.norm, step.eps, scratch_.row);
      values = scratch_.row;
    }
    for (size_t f = 0; f < step.forms; ++f) {
      const ActivationForm& form = step.form[f];
      const Activations& to = activations[f];
      if (reads_in_place(step, form)) {
        continue;
      }
      if (form.is_float) {
        memcpy(static_cast<float*>(to.values) + row * to.stride, values, form.k * sizeof(float));
      } else {
        const size_t padded = (form.k + EDGEKIT_K_UNIT - 1) / EDGEKIT_K_UNIT * EDGEKIT_K_UNIT;
        edgekit_quantize_row(form.k, padded, form.group, values, static_cast<int8_t*>(to.values) + row * to.stride,
                             to.scale + row * to.groups, to.sum + row * to.groups);
      }
    }
  }

  // The tiles of all matrices of a step, one after the other. Gate and up tiles come in pairs.
  static Division divide(const Step& step, size_t m) {
    const size_t unit = step.kind == OperatorKind::kNormGatedLinear ? 2 : 1;
    size_t tiles = 0;
    size_t bytes = 0;
    for (size_t i = 0; i < step.matrices; ++i) {
      const Matrix& matrix = step.matrix[i];
      tiles += matrix.tiles;
      bytes += matrix.tiles * (matrix.tile_code_bytes + matrix.tile_scale_count * sizeof(uint16_t));
    }
    if (m > 1) {
      return Division(tiles, 2, 2, kPrefillTiles);
    }
    const size_t least = kPieceBytes / (bytes / tiles);
    return Division(tiles, unit, std::clamp(least, unit, kMostPieceTiles) / unit * unit, kMostPieceTiles);
  }

  void multiply_pieces(const Step& step, const Activations* activations, size_t first, size_t m, float* out,
                       size_t stride) {
    bool has_formed_row = m > 1;
    worker_.share_ranges(1, divide(step, m), [&](Range claimed) {
      if (!has_formed_row) {
        form_row(step, worker_.row_of(step.input, first), 0, activations);
        has_formed_row = true;
      }
      size_t first_tile = 0;
      size_t column = 0;
      for (size_t i = 0; i < step.matrices; ++i) {
        const Matrix& matrix = step.matrix[i];
        Piece piece;
        piece.matrix = &matrix;
        piece.activations = &activations[step.form_of[i]];
        piece.kernel = m == 1 ? step.decode[i] : step.prefill[i];
        piece.tile_begin = std::max(claimed.begin, first_tile) - first_tile;
        piece.tile_end = std::clamp(claimed.end, first_tile, first_tile + matrix.tiles) - first_tile;
        if (piece.tile_begin < piece.tile_end) {
          finish_piece(step, piece, first, m, out + column, stride);
        }
        first_tile += matrix.tiles;
        column += matrix.n;
      }
    });
  }

  struct Piece {
    const Matrix* matrix;
    const Activations* activations;
    const edgekit_gemm_kernel* kernel;
    size_t tile_begin;
    size_t tile_end;

    size_t columns() const { return std::min(matrix->n, tile_end * EDGEKIT_TILE) - tile_begin * EDGEKIT_TILE; }
  };

  void finish_piece(const Step& step, const Piece& piece, size_t first, size_t m, float* out, size_t stride) {
    switch (step.kind) {
      case OperatorKind::kLinearAdd:
        return add_piece(piece, step.output, first, m);
      case OperatorKind::kNormGatedLinear:
        return gate_piece(piece, step.output, first, m);
      default:
        return store_piece(piece, m, out, stride);
    }
  }

  // c [m][stride] = rows [row, row + m) times the piece's tiles, plus the bias.
  void compute(const Piece& piece, size_t row, size_t m, float* c, size_t stride) const {
    const Matrix& matrix = *piece.matrix;
    const Activations& from = *piece.activations;
    edgekit_gemm_args args;
    args.m = m;
    args.k = matrix.is_float() ? matrix.k : (matrix.k + EDGEKIT_K_UNIT - 1) / EDGEKIT_K_UNIT * EDGEKIT_K_UNIT;
    args.group = matrix.group;
    args.tile_begin = piece.tile_begin;
    args.tile_end = piece.tile_end;
    args.a = matrix.is_float() ? static_cast<const void*>(static_cast<const float*>(from.values) + row * from.stride)
                               : static_cast<const int8_t*>(from.values) + row * from.stride;
    args.a_stride = from.stride;
    args.a_scale = from.scale + row * from.groups;
    args.a_sum = from.sum + row * from.groups;
    args.codes = matrix.codes;
    args.scales = matrix.scales;
    args.c = c;
    args.c_stride = stride;
    piece.kernel->run(&args);
    if (matrix.bias != nullptr) {
      for (size_t i = 0; i < m; ++i) {
        ops_.add(piece.columns(), matrix.bias + piece.tile_begin * EDGEKIT_TILE, c + i * stride);
      }
    }
  }

  // Whole tiles go straight to `out`; a last tile that reaches past n goes through scratch.
  void store_piece(const Piece& piece, size_t m, float* out, size_t stride) {
    const size_t whole = piece.matrix->n / EDGEKIT_TILE;
    if (piece.tile_begin < whole) {
      Piece inside = piece;
      inside.tile_end = std::min(piece.tile_end, whole);
      compute(inside, 0, m, out + piece.tile_begin * EDGEKIT_TILE, stride);
    }
    if (piece.tile_end > whole) {
      Piece last = piece;
      last.tile_begin = whole;
      compute_in_scratch(last, m, [&](size_t row, const float* results) {
        memcpy(out + row * stride + whole * EDGEKIT_TILE, results, last.columns() * sizeof(float));
      });
    }
  }

  // Computes the piece into scratch, a block of rows at a time, and calls take(row, results) for each row below m.
  template <typename Take>
  void compute_in_scratch(const Piece& piece, size_t m, const Take& take) {
    const size_t stride = (piece.tile_end - piece.tile_begin) * EDGEKIT_TILE;
    const size_t blocks = (m + kRowBlock - 1) / kRowBlock;
    const size_t block_rows = (m + blocks - 1) / blocks;
    for (size_t row = 0; row < m; row += block_rows) {
      const size_t rows = std::min(block_rows, m - row);
      compute(piece, row, rows, scratch_.tiles, stride);
      for (size_t i = 0; i < rows; ++i) {
        take(row + i, scratch_.tiles + i * stride);
      }
    }
  }

  void add_piece(const Piece& piece, const BufferUse& output, size_t first, size_t m) {
    compute_in_scratch(piece, m, [&](size_t row, const float* results) {
      ops_.add(piece.columns(), results, worker_.row_of(output, first + row) + piece.tile_begin * EDGEKIT_TILE);
    });
  }

  void gate_piece(const Piece& piece, const BufferUse& output, size_t first, size_t m) {
    compute_in_scratch(piece, m, [&](size_t row, const float* results) {
      ops_.silu_multiply((piece.tile_end - piece.tile_begin) / 2, results,
                         worker_.row_of(output, first + row) + piece.tile_begin / 2 * EDGEKIT_TILE);
    });
  }

  Worker& worker_;
  edgekit_session& session_;
  const edgekit_program_info& info_;
  const ops::Ops& ops_;
  Scratch& scratch_;
};

}  // namespace

void multiply(Worker& worker, const Step& step, size_t first, size_t m, float* out, size_t stride) {
  Product(worker).multiply_rows(step, first, m, out, stride);
}

}  // namespace edgekit
