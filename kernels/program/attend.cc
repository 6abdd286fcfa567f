// Attention over the cache of a layer: one token at a time, or many rows after all of them were appended.
#include <string.h>

#include "program/worker.h"

namespace edgekit {
namespace {

using ops::AttendBlock;
using ops::kBlock;

constexpr float kMinusInfinity = -__builtin_inff();

class Attention {
 public:
  explicit Attention(Worker& worker)
      : worker_(worker),
        session_(worker.session),
        info_(worker.info),
        ops_(worker.ops),
        scratch_(worker.scratch),
        job_(worker.job) {}

  void run(const Step& step) { job_.rows == 1 ? attend_one(step) : attend_many(step); }

 private:
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
    const size_t at = worker_.angles_at(step.rope, row);
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
    const float* input = worker_.row_of(step.input, 0);
    worker_.share(1, blocks * info_.kv_heads, [&](size_t piece) {
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
                              worker_.row_of(step.output, 0) + (head * group() + i) * info_.head_dim);
        continue;
      }
      start_merging(scratch_.merged);
      for (size_t block = 0; block < blocks; ++block) {
        ops_.merge(session_.value_stride, partials + (block * group() + i) * session_.partial_stride, scratch_.merged);
      }
      ops_.finish_attention(info_.head_dim, session_.value_stride, scratch_.merged,
                            worker_.row_of(step.output, 0) + (head * group() + i) * info_.head_dim);
    }
  }

  // First every row is rotated and appended, then pieces: (head of the cache, a few rows), the longest first.
  void attend_many(const Step& step) {
    worker_.share_rows(0, job_.rows, [&](size_t row) { append_row(step, row); });
    const size_t row_blocks = (job_.rows + kAttendRows - 1) / kAttendRows;
    worker_.share(1, row_blocks * info_.kv_heads, [&](size_t piece) {
      attend_rows(step, piece % info_.kv_heads, (row_blocks - 1 - piece / info_.kv_heads) * kAttendRows);
    });
  }

  void append_row(const Step& step, size_t row) {
    float* input = worker_.row_of(step.input, row);
    for (size_t head = 0; head < info_.heads; ++head) {
      norm_and_rotate(step, step.q_norm, row, input + head * info_.head_dim);
    }
    for (size_t head = 0; head < info_.kv_heads; ++head) {
      norm_and_rotate(step, step.k_norm, row, input + (info_.heads + head) * info_.head_dim);
      append(step, head, job_.position + row, key_in(input, head), value_in(input, head));
    }
  }

  void attend_rows(const Step& step, size_t head, size_t first_row) {
    const size_t rows = std::min(kAttendRows, job_.rows - first_row);
    const size_t queries = rows * group();
    for (size_t i = 0; i < queries; ++i) {
      const size_t row = first_row + i / group();
      scratch_.query_rows[i] = worker_.row_of(step.input, row) + (head * group() + i % group()) * info_.head_dim;
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
                            worker_.row_of(step.output, first_row + i / group()) +
                                (head * group() + i % group()) * info_.head_dim);
    }
  }

  Worker& worker_;
  edgekit_session& session_;
  const edgekit_program_info& info_;
  const ops::Ops& ops_;
  Scratch& scratch_;
  const Job& job_;
};

}  // namespace

void attend(Worker& worker, const Step& step) { Attention(worker).run(step); }

}  // namespace edgekit
