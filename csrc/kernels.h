// The inner loops, one set per instruction set. All sizes and strides are bytes unless said otherwise.
#ifndef KVLINGUA_KERNELS_H_
#define KVLINGUA_KERNELS_H_

#include <cstdint>

namespace kvl {

// One loop: `size` steps of so many bytes on each side.
struct Axis {
    int64_t size, source, target;
};

struct Kernels {
    const char* name;

    // Copies rows of `bytes` each, for all steps of three loops, slowest first. What lies `ahead` bytes from each row's
    // source is fetched into the cache: the same row of a run that comes later.
    void (*rows)(char* dst, const char* src, const Axis* loops, int64_t bytes, int64_t ahead);
    // The same for outputs larger than the cache: whole lines of the target are written past it.
    void (*stream_rows)(char* dst, const char* src, const Axis* loops, int64_t bytes, int64_t ahead);

    // Moves element [r, c] from src + r * src_stride + c * itemsize to dst + c * dst_stride + r * itemsize, for
    // elements of 2 and of 4 bytes; rows and cols are counts. `stream` as above.
    void (*transpose2)(char* dst, int64_t dst_stride, const char* src, int64_t src_stride, int64_t rows, int64_t cols,
                       int64_t ahead, bool stream);
    void (*transpose4)(char* dst, int64_t dst_stride, const char* src, int64_t src_stride, int64_t rows, int64_t cols,
                       int64_t ahead, bool stream);

    // Makes streamed lines visible to other threads; to be called once after the last of them.
    void (*fence)();
};

extern const Kernels kPortable;
#if defined(__x86_64__)
extern const Kernels kAvx2;
extern const Kernels kAvx512;
#endif

// The kernels for a KVL_* number, or null if this CPU can't run them.
const Kernels* find_kernels(int32_t which);

}  // namespace kvl

#endif  // KVLINGUA_KERNELS_H_
