// Fetching into the cache what is read soon.
//
// To be included inside a KVL_TARGET region where there is one: everything is in an anonymous namespace, so that no
// function compiled for one instruction set can be taken by the linker for another file's.
#ifndef KVLINGUA_FETCH_H_
#define KVLINGUA_FETCH_H_

#include <cstdint>

// Whether a compiler inlines these is not left to it: arrays of vectors must become registers, and GCC takes a function
// that does nothing but fetch for one that does nothing, and drops calls of it.
#define KVL_INLINE inline __attribute__((always_inline))

namespace {

// An address beside the memory at hand: made of integers, since it may lie in another allocation.
KVL_INLINE const char* beside(const char* p, int64_t distance) {
    return reinterpret_cast<const char*>(reinterpret_cast<intptr_t>(p) + distance);
}

// Fetches a line. Into the cache's first level alone if so much is written that it goes past the cache (kStream): the
// other levels then don't have to take what is read only once (up to 6 % on Zen 5).
template <bool kStream>
KVL_INLINE void fetch_line(const char* p) {
    __builtin_prefetch(p, 0, kStream ? 0 : 3);
}

}  // namespace

#endif  // KVLINGUA_FETCH_H_
