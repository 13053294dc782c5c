// What the loops of all kernels with vectors need, whatever the instruction set.
//
// To be included inside a KVL_TARGET region where there is one: everything is in an anonymous namespace, so that no
// function compiled for one instruction set can be taken by the linker for another file's.
#ifndef KVLINGUA_SIMD_H_
#define KVLINGUA_SIMD_H_

#include "fetch.h"

namespace {

// A vector type has kBytes and:
//   load, store              unaligned
//   kStreams, stream         whether there is a store past the cache (aligned), and it
//   lo<n>, hi<n>             interleave the lower or upper halves of each 16-byte lane, by units of n bytes
//   Half                     the vectors to fill half a line of the cache with
// that of 16 bytes, V16 (simd_x86.h, simd_neon.h: to be included before the loops):
//   gather(p, step)          load(p)
//   part<n>(&a, &b)          a becomes the units of n bytes with even numbers of a, then those of b; b the others
// and wider ones:
//   gather(p, step)          kBytes / 16 pieces of 16 bytes from p, p + step, ...
//   pairs(p, step)           kBytes / 32 pieces of 32 bytes from p, p + step, ...
//   swap_lanes(r)            transposes kBytes / 16 vectors by their 16-byte lanes
//   even(a, b), odd(a, b)    the even or odd 16-byte lanes of a, then those of b

// Fetches a line of each of so many rows.
template <bool kStream>
KVL_INLINE void fetch_lines(const char* p, int64_t stride, int64_t rows) {
    for (int64_t i = 0; i < rows; ++i) fetch_line<kStream>(beside(p, i * stride));
}

template <class V, bool kStream>
KVL_INLINE void put(char* p, typename V::T v) {
    if constexpr (kStream)
        V::stream(p, v);
    else
        V::store(p, v);
}

}  // namespace

#endif  // KVLINGUA_SIMD_H_
