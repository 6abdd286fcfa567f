// Attention over the cache of a layer: one token at a time, or many rows after all of them were appended.
#include <string.h>

#include "program/division.h"
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
    session_.cache.append(ops_, step.layer, head, position, key, value, scratch_.codes);
  }

  const float* key_in(const float* row, size_t head) const { return row + (info_.heads + head) * info_.head_dim; }

  const float* value_in(const float* row, size_t head) const {
    return row + (info_.heads + info_.kv_heads + head) * info_.head_dim;
  }

  // Pieces: runs of blocks, those of one head after those of another, so that a thread reads long streams. Whoever
  // holds a head's last block appends the new position; whoever finishes a head's last block merges the head.
  void attend_one(const Step& step) {
    const size_t first_block = first_seen(step, job_.position) / kBlock;
    const size_t blocks = job_.position / kBlock + 1 - first_block;
    const size_t all = blocks * info_.kv_heads;
    worker_.share_ranges(1, Division(all, 1, 1, all), [&](Range range) {
      for (size_t at = range.begin; at < range.end;) {
        const size_t head = at / blocks;
        const size_t end = std::min(range.end, (head + 1) * blocks);
        attend_head(step, head, first_block, at - head * blocks, end - head * blocks, blocks);
        at = end;
      }
    });
  }

  // Of the blocks that the new token sees, of which there are `blocks`, those from `begin` to `end`.
  void attend_head(const Step& step, size_t head, size_t first_block, size_t begin, size_t end, size_t blocks) {
    const size_t position = job_.position;
    const float* input = worker_.row_of(step.input, 0);
    memcpy(scratch_.queries, input + head * group() * info_.head_dim, group() * info_.head_dim * sizeof(float));
    for (size_t i = 0; i < group(); ++i) {
      scratch_.query_rows[i] = scratch_.queries + i * info_.head_dim;
      norm_and_rotate(step, step.q_norm, 0, scratch_.queries + i * info_.head_dim);
    }
    if (end == blocks) {
      float* key = scratch_.queries + group() * info_.head_dim;
      memcpy(key, key_in(input, head), info_.head_dim * sizeof(float));
      norm_and_rotate(step, step.k_norm, 0, key);
      append(step, head, position, key, value_in(input, head));
    }
    float* partials = session_.partials + head * blocks * group() * session_.partial_stride;
    for (size_t i = begin; i < end; ++i) {
      for (size_t query = 0; query < group(); ++query) {
        set_seen(step, query, position, first_block + i);
      }
      attend_block(step, head, first_block + i, group(), partials + i * group() * session_.partial_stride);
    }
    std::atomic<uint32_t>& done = session_.blocks_done[head * kCounterStride];
    const auto finished = uint32_t(end - begin);
    if (done.fetch_add(finished, std::memory_order_acq_rel) + finished == blocks) {
      done.store(0, std::memory_order_relaxed);
      merge_head(step, head, blocks, partials);
    }
  }

  void set_seen(const Step& step, size_t query, size_t position, size_t block) {
    const size_t begin = first_seen(step, position);
    const size_t start = block * kBlock;
    scratch_.seen_begin[query] = uint16_t(begin > start ? std::min(begin - start, kBlock) : 0);
    scratch_.seen_end[query] = uint16_t(position + 1 > start ? std::min(position + 1 - start, kBlock) : 0);
  }

  void attend_block(const Step& step, size_t head, size_t block, size_t queries, float* partial) const {
    const KvBlock cached = session_.cache.block(step.layer, head, block);
    AttendBlock work;
    work.queries = queries;
    work.head_dim = info_.head_dim;
    work.q = scratch_.query_rows;
    work.keys = cached.keys;
    work.values = cached.values;
    work.key_scales = cached.key_scales;
    work.value_scales = cached.value_scales;
    work.next_bytes = cached.bytes;
    work.begin = scratch_.seen_begin;
    work.end = scratch_.seen_end;
    work.scale = step.scale;
    work.partial = partial;
    work.partial_stride = session_.partial_stride;
    ops_.attend(work);
  }

  void start_merging(float* merged) const {
    memset(merged, 0, session_.partial_stride * sizeof(float));
    merged[session_.cache.value_stride()] = kMinusInfinity;
  }

  // One block alone is the result: merging it into nothing would change no bit.
  void merge_head(const Step& step, size_t head, size_t blocks, const float* partials) {
    for (size_t i = 0; i < group(); ++i) {
      if (blocks == 1) {
        ops_.finish_attention(info_.head_dim, session_.cache.value_stride(), partials + i * session_.partial_stride,
                              worker_.row_of(step.output, 0) + (head * group() + i) * info_.head_dim);
        continue;
      }
      start_merging(scratch_.merged);
      for (size_t block = 0; block < blocks; ++block) {
        ops_.merge(session_.cache.value_stride(), partials + (block * group() + i) * session_.partial_stride,
                   scratch_.merged);
      }
      ops_.finish_attention(info_.head_dim, session_.cache.value_stride(), scratch_.merged,
                            worker_.row_of(step.output, 0) + (head * group() + i) * info_.head_dim);
    }
  }

  // First every row is rotated and appended, then pieces: (head of the cache, a few rows), the longest first. The last
  // layer attends for the rows of the logits only.
  void attend_many(const Step& step) {
    worker_.share_rows(0, job_.rows, [&](size_t row) { append_row(step, row); });
    const size_t first = worker_.first_row(step);
    const size_t row_blocks = (job_.rows - first + kAttendRows - 1) / kAttendRows;
    if (row_blocks == 0) {
      return;
    }
    worker_.share(1, row_blocks * info_.kv_heads, [&](size_t piece) {
      attend_rows(step, piece % info_.kv_heads, first + (row_blocks - 1 - piece / info_.kv_heads) * kAttendRows);
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
        ops_.merge(session_.cache.value_stride(), scratch_.partial + i * session_.partial_stride,
                   scratch_.merged + i * session_.partial_stride);
      }
    }
    for (size_t i = 0; i < queries; ++i) {
      ops_.finish_attention(info_.head_dim, session_.cache.value_stride(),
                            scratch_.merged + i * session_.partial_stride,
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
