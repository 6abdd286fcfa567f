// How tiles are divided into pieces that threads claim in rising order: large ones first, each a long stream of weights
// for the prefetchers, then ever smaller ones, so that all threads finish together although some are slower.
#pragma once

#include <stddef.h>

namespace edgekit {

class Division {
 public:
  // The first half of the tiles makes two pieces a thread, half of the rest two more, and so on until a piece would
  // have `least` tiles or fewer. Every piece but the last is a multiple of `unit`, which divides `least` and `most`,
  // and has at most `most` tiles. One thread gets equal pieces: what it does is one stream anyway.
  static Division falling(size_t tiles, size_t unit, size_t least, size_t most, size_t threads) {
    Division division(tiles, least);
    division.round_pieces_ = 2 * threads;
    for (size_t left = tiles; threads > 1 && division.rounds_ < kMostRounds; ++division.rounds_) {
      const size_t wanted = left / (4 * threads) / unit * unit;
      const size_t size = wanted < most ? wanted : most;
      if (size <= least) {
        break;
      }
      division.round_size_[division.rounds_] = size;
      division.round_begin_[division.rounds_ + 1] = division.round_begin_[division.rounds_] + size * 2 * threads;
      left = tiles - division.round_begin_[division.rounds_ + 1];
    }
    return division;
  }

  // Pieces of `size` tiles.
  static Division equal(size_t tiles, size_t size) { return Division(tiles, size); }

  size_t count() const {
    const size_t left = tiles_ - round_begin_[rounds_];
    return rounds_ * round_pieces_ + (left + least_ - 1) / least_;
  }

  size_t begin(size_t piece) const {
    if (piece >= rounds_ * round_pieces_) {
      const size_t begin = round_begin_[rounds_] + (piece - rounds_ * round_pieces_) * least_;
      return begin < tiles_ ? begin : tiles_;
    }
    const size_t round = piece / round_pieces_;
    return round_begin_[round] + piece % round_pieces_ * round_size_[round];
  }

  size_t end(size_t piece) const { return begin(piece + 1); }

 private:
  static constexpr size_t kMostRounds = 8;

  Division(size_t tiles, size_t least) : tiles_(tiles), least_(least) {}

  size_t tiles_;
  size_t least_;
  size_t round_pieces_ = 1;
  size_t rounds_ = 0;
  size_t round_size_[kMostRounds] = {};
  size_t round_begin_[kMostRounds + 1] = {};
};

}  // namespace edgekit
