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
// none. Planes, layers and blocks that follow each other on both sides are one piece, but only within a span: memory
// that was allocated apart may be next to each other, and no copy may go from one to the other. None, too, if it is so
// scattered that finding out would take long. Throws std::bad_alloc.
std::vector<Piece> find_large_pieces(const kvl_plan& plan, int64_t least_bytes);

}  // namespace kvl

#endif  // KVLINGUA_CUDA_LARGE_PIECES_H_
