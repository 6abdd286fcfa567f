#include "tokenizer/merge.h"

#include <algorithm>

namespace edgekit::tokenizer {
namespace {

constexpr uint32_t kEnd = 0xffffffff;
constexpr uint32_t kGone = 0xfffffffe;

}  // namespace

const format::Merge* Merges::find(uint32_t left, uint32_t right) const {
  const format::Merge* first = entries + (left == 0 ? 0 : ends[left - 1]);
  const format::Merge* last = entries + ends[left];
  const auto* found =
      std::lower_bound(first, last, right, [](const format::Merge& merge, uint32_t id) { return merge.right < id; });
  return found != last && found->right == right ? found : nullptr;
}

void Merger::add(uint32_t id) {
  const auto at = static_cast<uint32_t>(symbols_.size());
  if (at > 0) symbols_.back().next = at;
  symbols_.push_back({id, at == 0 ? kEnd : at - 1, kEnd});
}

namespace {

// std::push_heap keeps the greatest on top, so the later candidate is the lesser.
constexpr auto later = [](const auto& a, const auto& b) {
  return a.rank != b.rank ? a.rank > b.rank : a.position > b.position;
};

}  // namespace

void Merger::consider(uint32_t position) {
  const Symbol& left = symbols_[position];
  if (left.next == kEnd) return;
  const format::Merge* merge = merges_.find(left.id, symbols_[left.next].id);
  if (merge == nullptr) return;
  queue_.push_back({merge->rank, position, merge->result});
  std::push_heap(queue_.begin(), queue_.end(), later);
}

void Merger::finish(std::vector<uint32_t>* ids) {
  for (uint32_t at = 0; at + 1 < symbols_.size(); ++at) consider(at);
  while (!queue_.empty()) {
    std::pop_heap(queue_.begin(), queue_.end(), later);
    const Candidate best = queue_.back();
    queue_.pop_back();
    Symbol& left = symbols_[best.position];
    if (left.next == kGone || left.next == kEnd) continue;
    Symbol& right = symbols_[left.next];
    // A neighbour may have changed since; then the candidate for the new pair is in the queue as well.
    const format::Merge* merge = merges_.find(left.id, right.id);
    if (merge == nullptr || merge->result != best.result) continue;
    left.id = best.result;
    left.next = right.next;
    right.next = kGone;
    if (left.next != kEnd) symbols_[left.next].previous = best.position;
    if (left.previous != kEnd) consider(left.previous);
    consider(best.position);
  }
  for (const Symbol& symbol : symbols_) {
    if (symbol.next != kGone) ids->push_back(symbol.id);
  }
  symbols_.clear();
}

}  // namespace edgekit::tokenizer
