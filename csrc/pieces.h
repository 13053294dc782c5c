// A run of tokens, cut where tiles begin and end.
#ifndef KVLINGUA_PIECES_H_
#define KVLINGUA_PIECES_H_

#include <cstdint>

#include "kernels.h"
#include "kvlingua.h"
#include "runs.h"

namespace kvl {

// Tokens of a run that lie regularly on both sides: up to three axes, tiles of tiles of tokens.
struct Piece {
    static constexpr int kAxes = 3;

    int64_t source, target;  // bytes from the base of a plane's layer to the first token
    Axis axis[kAxes];        // slowest first; those that aren't needed have size 1
};

// Cuts a run of one plane into pieces, in order: whole tiles in the middle, what is left before and behind by itself.
class Pieces {
  public:
    Pieces(const Run& run, const kvl_side& source, const kvl_side& target)
        : run_(run), source_(source), target_(target) {}

    // The next piece, or false if there is none left.
    bool next(Piece* piece);

  private:
    int64_t take_tiles(Axis* axis, int64_t source_token, int64_t target_token, int64_t left) const;

    const Run& run_;
    const kvl_side &source_, &target_;
    int64_t done_ = 0;
};

}  // namespace kvl

#endif  // KVLINGUA_PIECES_H_
