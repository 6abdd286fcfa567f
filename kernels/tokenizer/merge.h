// Byte-pair merging of one word: the pair of lowest rank first, the leftmost of equals; O(n log n).
#pragma once

#include <stdint.h>

#include <vector>

#include "tokenizer/format.h"

namespace edgekit::tokenizer {

// The merges of a section, in place: those with left id l are entries[ends[l - 1]] to entries[ends[l]], by right id.
struct Merges {
  const uint32_t* ends = nullptr;
  const format::Merge* entries = nullptr;

  const format::Merge* find(uint32_t left, uint32_t right) const;
};

// Merges words one after the other and keeps its memory between them.
class Merger {
 public:
  explicit Merger(const Merges& merges) : merges_(merges) {}

  void add(uint32_t id);
  // Appends the tokens of the symbols added since the last call.
  void finish(std::vector<uint32_t>* ids);

 private:
  struct Symbol {
    uint32_t id;
    uint32_t previous;
    uint32_t next;  // kGone: merged into the one before it
  };
  struct Candidate {
    uint32_t rank;
    uint32_t position;  // of the left symbol
    uint32_t result;
  };

  void consider(uint32_t position);

  Merges merges_;
  std::vector<Symbol> symbols_;
  std::vector<Candidate> queue_;  // a heap
};

}  // namespace edgekit::tokenizer
