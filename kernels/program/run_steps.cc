// The interpreter. All threads walk the same steps; within a phase of a step they claim pieces of work, and the next
// phase begins when all pieces are finished (program/threads.h).
//
// One token (m = 1): every thread that gets a piece norms and quantizes the one row for itself, which is cheaper than
// waiting. More rows: norm and quantization are a phase of their own, divided by rows.
#include <string.h>

#include <algorithm>

#include "ops/rope.h"
#include "program/division.h"
#include "program/session.h"

namespace edgekit {
namespace {

using format::OperatorKind;
using ops::AttendBlock;
using ops::kBlock;

constexpr size_t kPieceBytes = 16384;   // of weights, when m == 1: what the last pieces of a product have
constexpr size_t kPiecesPerThread = 4;  // when m > 1, at least: a slow thread holds the others up only a little
constexpr float kMinusInfinity = -__builtin_inff();

class Worker {
 public:
  Worker(edgekit_session& session, const Job& job, unsigned member, uint32_t run)
      : session_(session),
        job_(job),
        run_(run),
        program_(*session.program),
        info_(session.program->info),
        ops_(*session.program->ops),
        scratch_(session.scratch[member]),
        rows_(job.rows) {}

  void run() {
    for (size_t i = 0; i < program_.step_count; ++i) {
      first_phase_ = i * kPhasesPerStep;
      run_step(program_.steps[i]);
    }
  }

 private:
  void run_step(const Step& step) {
    switch (step.kind) {
      case OperatorKind::kEmbed:
        return embed(step);
      case OperatorKind::kAttention:
        return rows_ == 1 ? attend_one(step) : attend_many(step);
      case OperatorKind::kNormLinear:
        return multiply_rows(step, 0, rows_, row_of(step.output, 0), step.output.width);
      case OperatorKind::kLinearAdd:
      case OperatorKind::kNormGatedLinear:
        return multiply_rows(step, 0, rows_, nullptr, 0);
      case OperatorKind::kHead:
        if (job_.logits_rows > 0) {
          multiply_rows(step, rows_ - job_.logits_rows, job_.logits_rows, job_.logits, info_.vocab);
        }
        return;
    }
  }

  // Does work(piece) for those of `pieces` that this thread gets, and returns when all are finished.
  template <typename Work>
  void share(size_t phase, size_t pieces, const Work& work) {
    if (job_.active == 1) {
      for (size_t piece = 0; piece < pieces; ++piece) {
        work(piece);
      }
      return;
    }
    Team& team = session_.team;
    size_t done = 0;
    for (size_t piece; (piece = team.claim(run_, first_phase_ + phase, pieces)) != Team::kNone; ++done) {
      work(piece);
    }
    if (done > 0) {
      team.finish(run_, first_phase_ + phase, done, pieces);
    }
    team.await(run_, first_phase_ + phase, pieces);
  }

  // The same for every row below `rows`, kRowsPerPiece of them a piece.
  template <typename Work>
  void share_rows(size_t phase, size_t rows, const Work& work) {
    share(phase, (rows + kRowsPerPiece - 1) / kRowsPerPiece, [&](size_t piece) {
      const size_t end = std::min(rows, (piece + 1) * kRowsPerPiece);
      for (size_t row = piece * kRowsPerPiece; row < end; ++row) {
        work(row);
      }
    });
  }

  float* row_of(const BufferUse& buffer, size_t row) const {
    return session_.arena.at<float>((buffer.offset + row * buffer.width) * sizeof(float));
  }

  // ---- Embedding, and the rotary angles of the rows.

  void embed(const Step& step) {
    const Matrix& matrix = step.matrix[0];
    share_rows(0, rows_, [&](size_t row) {
      const uint32_t token = job_.tokens[row];
      const size_t tile = token / EDGEKIT_TILE;
      edgekit_unpack_row(matrix.format, matrix.k, matrix.group, matrix.codes + tile * matrix.tile_code_bytes,
                         matrix.scales + tile * matrix.tile_scale_count, token % EDGEKIT_TILE,
                         row_of(step.output, row));
      for (size_t i = 0; i < program_.rope_count; ++i) {
        const size_t at = angles_at(i, row);
        ops::rope_angles(info_.head_dim / 2, program_.ropes[i].inverse_frequency, float(job_.position + row),
                         program_.ropes[i].factor, session_.cosine + at, session_.sine + at);
      }
    });
  }

  size_t angles_at(size_t rope, size_t row) const { return (rope * info_.max_rows + row) * (info_.head_dim / 2); }

  // ---- Products.

  // Rows [first, first + m) of the step's input through its matrices. `out` [m][stride] for plain results.
  void multiply_rows(const Step& step, size_t first, size_t m, float* out, size_t stride) {
    Activations activations[kMostWeights];
    uint8_t* memory = m == 1 ? scratch_.activations_memory : session_.activations_memory;
    for (size_t f = 0; f < step.forms; ++f) {
      memory += lay_out_activations(step.form[f], m, memory, &activations[f]);
      if (reads_in_place(step, step.form[f])) {
        activations[f].values = row_of(step.input, first);
        activations[f].stride = step.input.width;
      }
    }
    if (m > 1) {
      share_rows(0, m, [&](size_t row) { form_row(step, row_of(step.input, first + row), row, activations); });
    }
    multiply_pieces(step, activations, first, m, out, stride);
  }

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

  // Gate and up tiles come in pairs.
  Division divide(const Step& step, const Matrix& matrix, size_t m) const {
    const size_t unit = step.kind == OperatorKind::kNormGatedLinear ? 2 : 1;
    if (m == 1) {
      const size_t tile_bytes = matrix.tile_code_bytes + matrix.tile_scale_count * sizeof(uint16_t);
      const size_t least = std::clamp(kPieceBytes / tile_bytes, unit, kMostPieceTiles) / unit * unit;
      return Division::falling(matrix.tiles, unit, least, kMostPieceTiles, job_.active);
    }
    const size_t balanced = matrix.tiles / (job_.active * kPiecesPerThread);
    return Division::equal(matrix.tiles, std::clamp(balanced, unit, kPrefillTiles) / unit * unit);
  }

  void multiply_pieces(const Step& step, const Activations* activations, size_t first, size_t m, float* out,
                       size_t stride) {
    const Division none = Division::equal(0, 1);
    Division division[kMostWeights] = {none, none, none};
    size_t first_piece[kMostWeights + 1] = {};
    size_t column[kMostWeights] = {};
    for (size_t i = 0; i < step.matrices; ++i) {
      division[i] = divide(step, step.matrix[i], m);
      first_piece[i + 1] = first_piece[i] + division[i].count();
      column[i] = i == 0 ? 0 : column[i - 1] + step.matrix[i - 1].n;
    }
    bool has_formed_row = m > 1;
    share(1, first_piece[step.matrices], [&](size_t claimed) {
      if (!has_formed_row) {
        form_row(step, row_of(step.input, first), 0, activations);
        has_formed_row = true;
      }
      size_t i = 0;
      while (claimed >= first_piece[i + 1]) {
        ++i;
      }
      Piece piece;
      piece.matrix = &step.matrix[i];
      piece.activations = &activations[step.form_of[i]];
      piece.kernel = m == 1 ? step.decode[i] : step.prefill[i];
      piece.tile_begin = division[i].begin(claimed - first_piece[i]);
      piece.tile_end = division[i].end(claimed - first_piece[i]);
      switch (step.kind) {
        case OperatorKind::kLinearAdd:
          add_piece(piece, step.output, first, m);
          break;
        case OperatorKind::kNormGatedLinear:
          gate_piece(piece, step.output, first, m);
          break;
        default:
          store_piece(piece, m, out + column[i], stride);
          break;
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
      ops_.add(piece.columns(), results, row_of(output, first + row) + piece.tile_begin * EDGEKIT_TILE);
    });
  }

  void gate_piece(const Piece& piece, const BufferUse& output, size_t first, size_t m) {
    compute_in_scratch(piece, m, [&](size_t row, const float* results) {
      ops_.silu_multiply((piece.tile_end - piece.tile_begin) / 2, results,
                         row_of(output, first + row) + piece.tile_begin / 2 * EDGEKIT_TILE);
    });
  }

  // ---- Attention.

  size_t group() const { return info_.heads / info_.kv_heads; }

  uint16_t* keys_of(const Step& step, size_t head) const {
    const size_t at = (step.layer * info_.kv_heads + head) * (session_.head_keys + session_.head_values);
    return session_.cache.at<uint16_t>(at * sizeof(uint16_t));
  }

  uint16_t* values_of(const Step& step, size_t head) const { return keys_of(step, head) + session_.head_keys; }

  // The position of the first token that the one at `position` sees.
  static size_t first_seen(const Step& step, size_t position) {
    return step.window > 0 && position + 1 > step.window ? position + 1 - step.window : 0;
  }

  void norm_and_rotate(const Step& step, const float* norm, size_t row, float* head) const {
    if (norm != nullptr) {
      ops_.rms_norm(info_.head_dim, head, norm, step.eps, head);
    }
    const size_t at = angles_at(step.rope, row);
    ops_.rotate(info_.head_dim, session_.cosine + at, session_.sine + at, head);
  }

  // `key` is rotated already.
  void append(const Step& step, size_t head, size_t position, const float* key, const float* value) const {
    const size_t lane = position % ops::kLanes;
    ops_.append_key(info_.head_dim, key, lane, keys_of(step, head) + (position - lane) * info_.head_dim);
    ops_.append_value(info_.head_dim, value, values_of(step, head) + position * session_.value_stride);
  }

  const float* key_in(const float* row, size_t head) const { return row + (info_.heads + head) * info_.head_dim; }

  const float* value_in(const float* row, size_t head) const {
    return row + (info_.heads + info_.kv_heads + head) * info_.head_dim;
  }

  // Pieces: (head of the cache, block of positions). Whoever holds the last block appends the new position; whoever
  // finishes a head's last block merges the head.
  void attend_one(const Step& step) {
    const size_t position = job_.position;
    const size_t first_block = first_seen(step, position) / kBlock;
    const size_t blocks = position / kBlock + 1 - first_block;
    const float* input = row_of(step.input, 0);
    share(1, blocks * info_.kv_heads, [&](size_t piece) {
      const size_t head = piece / blocks;
      const size_t block = first_block + piece % blocks;
      memcpy(scratch_.queries, input + head * group() * info_.head_dim, group() * info_.head_dim * sizeof(float));
      for (size_t i = 0; i < group(); ++i) {
        scratch_.query_rows[i] = scratch_.queries + i * info_.head_dim;
        norm_and_rotate(step, step.q_norm, 0, scratch_.queries + i * info_.head_dim);
        set_seen(step, i, position, block);
      }
      if (block == position / kBlock) {
        float* key = scratch_.queries + group() * info_.head_dim;
        memcpy(key, key_in(input, head), info_.head_dim * sizeof(float));
        norm_and_rotate(step, step.k_norm, 0, key);
        append(step, head, position, key, value_in(input, head));
      }
      float* partials = session_.partials + head * blocks * group() * session_.partial_stride;
      attend_block(step, head, block, group(), partials + (block - first_block) * group() * session_.partial_stride);
      std::atomic<uint32_t>& done = session_.blocks_done[head * kCounterStride];
      if (done.fetch_add(1, std::memory_order_acq_rel) + 1 == blocks) {
        done.store(0, std::memory_order_relaxed);
        merge_head(step, head, blocks, partials);
      }
    });
  }

  void set_seen(const Step& step, size_t query, size_t position, size_t block) {
    const size_t begin = first_seen(step, position);
    const size_t start = block * kBlock;
    scratch_.seen_begin[query] = uint16_t(begin > start ? std::min(begin - start, kBlock) : 0);
    scratch_.seen_end[query] = uint16_t(position + 1 > start ? std::min(position + 1 - start, kBlock) : 0);
  }

  void attend_block(const Step& step, size_t head, size_t block, size_t queries, float* partial) const {
    const size_t start = block * kBlock;
    AttendBlock work;
    work.queries = queries;
    work.head_dim = info_.head_dim;
    work.q = scratch_.query_rows;
    work.keys = keys_of(step, head) + start * info_.head_dim;
    work.values = values_of(step, head) + start * session_.value_stride;
    work.begin = scratch_.seen_begin;
    work.end = scratch_.seen_end;
    work.scale = step.scale;
    work.partial = partial;
    work.partial_stride = session_.partial_stride;
    ops_.attend(work);
  }

  void start_merging(float* merged) const {
    memset(merged, 0, session_.partial_stride * sizeof(float));
    merged[session_.value_stride] = kMinusInfinity;
  }

  // One block alone is the result: merging it into nothing would change no bit.
  void merge_head(const Step& step, size_t head, size_t blocks, const float* partials) {
    for (size_t i = 0; i < group(); ++i) {
      if (blocks == 1) {
        ops_.finish_attention(info_.head_dim, session_.value_stride, partials + i * session_.partial_stride,
                              row_of(step.output, 0) + (head * group() + i) * info_.head_dim);
        continue;
      }
      start_merging(scratch_.merged);
      for (size_t block = 0; block < blocks; ++block) {
        ops_.merge(session_.value_stride, partials + (block * group() + i) * session_.partial_stride, scratch_.merged);
      }
      ops_.finish_attention(info_.head_dim, session_.value_stride, scratch_.merged,
                            row_of(step.output, 0) + (head * group() + i) * info_.head_dim);
    }
  }

  // First every row is rotated and appended, then pieces: (head of the cache, a few rows), the longest first.
  void attend_many(const Step& step) {
    share_rows(0, rows_, [&](size_t row) { append_row(step, row); });
    const size_t row_blocks = (rows_ + kAttendRows - 1) / kAttendRows;
    share(1, row_blocks * info_.kv_heads, [&](size_t piece) {
      attend_rows(step, piece % info_.kv_heads, (row_blocks - 1 - piece / info_.kv_heads) * kAttendRows);
    });
  }

  void append_row(const Step& step, size_t row) {
    float* input = row_of(step.input, row);
    for (size_t head = 0; head < info_.heads; ++head) {
      norm_and_rotate(step, step.q_norm, row, input + head * info_.head_dim);
    }
    for (size_t head = 0; head < info_.kv_heads; ++head) {
      norm_and_rotate(step, step.k_norm, row, input + (info_.heads + head) * info_.head_dim);
      append(step, head, job_.position + row, key_in(input, head), value_in(input, head));
    }
  }

  void attend_rows(const Step& step, size_t head, size_t first_row) {
    const size_t rows = std::min(kAttendRows, rows_ - first_row);
    const size_t queries = rows * group();
    for (size_t i = 0; i < queries; ++i) {
      const size_t row = first_row + i / group();
      scratch_.query_rows[i] = row_of(step.input, row) + (head * group() + i % group()) * info_.head_dim;
      start_merging(scratch_.merged + i * session_.partial_stride);
    }
    const size_t position = job_.position + first_row;
    const size_t first_block = first_seen(step, position) / kBlock;
    const size_t last_block = (position + rows - 1) / kBlock;
    for (size_t block = first_block; block <= last_block; ++block) {
      for (size_t i = 0; i < queries; ++i) {
        set_seen(step, i, position + i / group(), block);
      }
      attend_block(step, head, block, queries, first_block == last_block ? scratch_.merged : scratch_.partial);
      for (size_t i = 0; i < queries && first_block < last_block; ++i) {
        ops_.merge(session_.value_stride, scratch_.partial + i * session_.partial_stride,
                   scratch_.merged + i * session_.partial_stride);
      }
    }
    for (size_t i = 0; i < queries; ++i) {
      ops_.finish_attention(info_.head_dim, session_.value_stride, scratch_.merged + i * session_.partial_stride,
                            row_of(step.output, first_row + i / group()) +
                                (head * group() + i % group()) * info_.head_dim);
    }
  }

  edgekit_session& session_;
  const Job job_;
  const uint32_t run_;
  const edgekit_program& program_;
  const edgekit_program_info& info_;
  const ops::Ops& ops_;
  Scratch& scratch_;
  size_t rows_;
  size_t first_phase_ = 0;  // of the step at hand
};

}  // namespace

void run_steps(edgekit_session* session, unsigned member, uint32_t run) {
  Job job;
  if (session->job.read(run, &job)) {
    Worker(*session, job, member, run).run();
  }
}

}  // namespace edgekit
