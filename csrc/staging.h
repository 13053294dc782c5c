// Whether a plane's tokens go by way of a small dense memory, and how they lie there.
#ifndef KVLINGUA_STAGING_H_
#define KVLINGUA_STAGING_H_

#include <cstdint>

#include "kvlingua.h"
#include "places.h"
#include "runs.h"

namespace kvl {

// Where one side has tokens one by one and the other side needs many together for a line of memory (slots of one token
// and a transposed block of 32), a direct copy would read or write a few bytes of each line it touches. By way of a
// memory that stays in the cache each side is read or written in its own order.
struct Staging {
    int64_t tokens = 0;   // the most to be staged at once; 0 if a direct copy is right
    kvl_side side{};      // where heads and tokens are in the memory, from its begin
    int64_t dim[4] = {};  // strides of the plane's dims there
    int64_t bytes = 0;    // of the memory
};

// heads: how many are staged together, the plane's or 1. direct: how tokens would be copied otherwise.
Staging find_staging(const kvl_plane& plane, int64_t heads, const Places& direct, const Table& source,
                     const Table& target);

}  // namespace kvl

#endif  // KVLINGUA_STAGING_H_
