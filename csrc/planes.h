// What planes have in common.
#ifndef KVLINGUA_PLANES_H_
#define KVLINGUA_PLANES_H_

#include <cstdint>

#include "kvlingua.h"

namespace kvl {

// Whether a plane's bits are copied, token by token.
bool is_copied(const kvl_plane& plane);

// How many planes from `plane` on, up to `end`, are copied together, as an axis of their elements: two that differ in
// nothing but their bases, lie at the same distance in every layer, and share blocks on one side, so that apart they
// would take each block twice.
int64_t woven_planes(const kvl_plane* plane, const kvl_plane* end, int64_t layers);

// Bytes from one address to another.
inline int64_t distance(uint64_t from, uint64_t to) { return static_cast<int64_t>(to - from); }

}  // namespace kvl

#endif  // KVLINGUA_PLANES_H_
