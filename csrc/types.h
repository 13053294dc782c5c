// What the types of elements are.
#ifndef KVLINGUA_TYPES_H_
#define KVLINGUA_TYPES_H_

#include <cstdint>

#include "kvlingua.h"

namespace kvl {

// Bytes of an element, or 0 for a number that is no type.
inline int64_t type_bytes(int32_t type) {
    switch (type) {
        case KVL_F32:
            return 4;
        case KVL_F16:
        case KVL_BF16:
            return 2;
        case KVL_E4M3FN:
        case KVL_E4M3FNUZ:
        case KVL_E5M2:
        case KVL_BYTE:
            return 1;
        default:
            return 0;
    }
}

inline bool is_fp8(int32_t type) { return type >= KVL_E4M3FN && type <= KVL_E5M2; }

// Where token t of a block is, in bytes from the block's first.
inline int64_t token_offset(const kvl_side& side, int64_t t) {
    if (!side.tile_tokens) return t * side.token;
    return t / side.tile_tokens * side.tile + t % side.tile_tokens * side.token;
}

}  // namespace kvl

#endif  // KVLINGUA_TYPES_H_
