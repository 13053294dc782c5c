// What copy engines can move.
#ifndef KVLINGUA_CUDA_LARGE_PIECES_H_
#define KVLINGUA_CUDA_LARGE_PIECES_H_

#include <cstdint>
#include <vector>

#include "../kvlingua.h"

namespace kvl {

struct Piece {
    uint64_t source, target, bytes;
};

// All that a checked plan copies, if that is in pieces of at least so many bytes, which lie alike on both sides; else
// none. Throws std::bad_alloc.
std::vector<Piece> find_large_pieces(const kvl_plan& plan, int64_t least_bytes);

}  // namespace kvl

#endif  // KVLINGUA_CUDA_LARGE_PIECES_H_
