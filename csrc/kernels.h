// The inner loops, one set per instruction set. All sizes and strides are bytes unless said otherwise.
#ifndef KVLINGUA_KERNELS_H_
#define KVLINGUA_KERNELS_H_

#include <cstddef>
#include <cstdint>

namespace kvl {

// One loop: `size` steps of so many bytes on each side.
struct Axis {
    int64_t size, source, target;
};

// Copies rows of `bytes` each, for all steps of three loops, slowest first. What lies `ahead` bytes from each row's
// source is fetched into the cache: the same row of a piece that comes later.
using Rows = void (*)(char* dst, const char* src, const Axis* loops, int64_t bytes, int64_t ahead);

// A piece of tokens: how far its first one is from the base of a plane's layer, in bytes, and which form it has.
struct Place {
    int64_t source, target;
    uint32_t form;
};

// Copies such rows at each place; those `ahead` places later, which are there, are fetched into the cache.
using PlacedRows = void (*)(char* dst, const char* src, const Place* place, size_t count, const Axis* loops,
                            int64_t bytes, size_t ahead);

// Moves unit [r, c] from src + r * src_stride + c * unit to dst + c * dst_stride + r * unit; rows and cols are counts.
// If `stream`, whole lines of the target are written past the cache. `ahead` as above.
using Transpose = void (*)(char* dst, int64_t dst_stride, const char* src, int64_t src_stride, int64_t rows,
                           int64_t cols, int64_t ahead, bool stream);

// Interleaves two rows of `units` each, `stride` apart in the source, for each step of `blocks`; or takes rows that are
// interleaved apart, to `stride` from each other in the target.
using Pairs = void (*)(char* dst, const char* src, int64_t stride, int64_t units, const Axis& blocks, int64_t ahead,
                       bool stream);

struct Kernels {
    const char* name;
    Rows rows;
    Rows stream_rows;  // for outputs larger than the cache: whole lines are written past it, where the CPU can
    PlacedRows placed_rows, stream_placed_rows;
    Transpose transpose[5];  // of units of 1, 2, 4, 8 and 16 bytes
    Pairs zip[3], unzip[3];  // units of 1, 2 and 4 bytes
    void (*fence)();         // makes streamed lines visible to other threads; to be called once after the last of them
};

// Rows that don't fill a line, down to a single byte, on any CPU.
void short_rows(char* dst, const char* src, const Axis* loops, int64_t bytes, int64_t ahead);

extern const Kernels kPortable;
#if defined(__x86_64__)
extern const Kernels kAvx2;
extern const Kernels kAvx512;
#elif defined(__AARCH64EL__)
extern const Kernels kNeon;
#endif

// The kernels for a KVL_* number, or null if this CPU can't run them.
const Kernels* find_kernels(int32_t which);

}  // namespace kvl

#endif  // KVLINGUA_KERNELS_H_
