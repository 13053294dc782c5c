#include "pieces.h"

#include <algorithm>

#include "types.h"

namespace kvl {

bool Pieces::next(Piece* piece) {
    const int64_t left = run_.tokens - done_;
    if (left == 0) return false;
    const int64_t s = run_.source_token + done_, t = run_.target_token + done_;
    piece->source = run_.source_block * source_.block + token_offset(source_, s);
    piece->target = run_.target_block * target_.block + token_offset(target_, t);
    for (Axis& axis : piece->axis) axis = {1, 0, 0};
    int64_t tokens = take_tiles(piece->axis, s, t, left);
    if (!tokens) {  // up to where the next tile begins
        tokens = left;
        if (source_.tile_tokens) tokens = std::min(tokens, source_.tile_tokens - s % source_.tile_tokens);
        if (target_.tile_tokens) tokens = std::min(tokens, target_.tile_tokens - t % target_.tile_tokens);
        piece->axis[2] = {tokens, source_.token, target_.token};
    }
    done_ += tokens;
    return true;
}

// Fills the axes if whole tiles begin here, and returns how many tokens they hold; else returns 0.
int64_t Pieces::take_tiles(Axis* axis, int64_t source_token, int64_t target_token, int64_t left) const {
    const int64_t a = source_.tile_tokens, b = target_.tile_tokens;
    if ((a && source_token % a) || (b && target_token % b) || (!a && !b)) return 0;
    const int64_t large = std::max(a, b), small = a && b ? std::min(a, b) : large;
    if (left < small || large % small) return 0;
    const int64_t inner =
        left < large ? left / small : large / small;  // small tiles in a large one, or in what is left
    const int64_t outer = left < large ? 1 : left / large;
    // Steps from tile to tile: a side without tiles, or within a larger one, goes on by tokens.
    const auto step = [](const kvl_side& side, int64_t tokens) {
        return side.tile_tokens && tokens >= side.tile_tokens ? tokens / side.tile_tokens * side.tile
                                                              : tokens * side.token;
    };
    axis[0] = {outer, step(source_, large), step(target_, large)};
    axis[1] = {inner, step(source_, small), step(target_, small)};
    axis[2] = {small, source_.token, target_.token};
    return outer * inner * small;
}

}  // namespace kvl
