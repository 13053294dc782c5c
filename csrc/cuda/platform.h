// What differs between nvcc (CUDA), hipcc or clang (HIP) and a plain C++ compiler, which makes the host twin.
//
// A kernel is a sequence of phases: each_thread(f) calls f(thread) for every thread of a grid block, barrier() stands
// between two phases. Nothing but a Scratch lives across a barrier, and threads meet in no other way. So the host
// executes the very same source, a grid block after the other and in each a phase after the other, and it knows
// nothing of warps: 32 or 64 lanes make no difference.
#ifndef KVLINGUA_CUDA_PLATFORM_H_
#define KVLINGUA_CUDA_PLATFORM_H_

#include <cstddef>
#include <cstdint>

namespace kvl {

constexpr uint32_t kThreads = 256;  // of a grid block

// What is read or written by one instruction.
struct alignas(16) Bytes16 {
    uint32_t word[4];
};
struct alignas(8) Bytes8 {
    uint32_t word[2];
};
using Bytes4 = uint32_t;
using Bytes2 = uint16_t;
using Bytes1 = uint8_t;

}  // namespace kvl

#if defined(__HIP__)
#if defined(KVL_PRELUDE)  // clang without ROCm: device code only (rocm/prelude.h is included by its command line)
#else
#include <hip/hip_runtime.h>
#endif
#define KVL_PLATFORM "hip"
#elif defined(__CUDACC__)
#include <cuda_runtime.h>
#define KVL_PLATFORM "cuda"
#else
#define KVL_PLATFORM "host"
#endif

#if defined(__HIP__) || defined(__CUDACC__)

#define KVL_GRID  // else grids are walked by runtime.h
#define KVL_DEVICE __device__ __forceinline__
#define KVL_SHARED __shared__
#define KVL_UNROLL _Pragma("unroll")
#if defined(__CUDACC__)
// Five grid blocks of a multiprocessor at a time leave each thread 48 registers, which suffice. Left to itself nvcc
// takes 40 on sm_120, and spills.
#define KVL_KERNEL __global__ void __launch_bounds__(kvl::kThreads, 5)
#define KVL_ARGUMENT const __grid_constant__
#if __CUDA_ARCH__ >= 890
#define KVL_FP8_INSTRUCTIONS
#endif
#else
#define KVL_KERNEL __global__ void __launch_bounds__(kvl::kThreads)
#define KVL_ARGUMENT const
#endif

namespace kvl {

// A kernel's only argument where it lies, in constant memory. Without this, what is indexed in it would be copied by
// every thread into memory of its own.
template <class T>
KVL_DEVICE const T& in_place(const T& argument) {
#if defined(__CUDACC__)
    return argument;
#else
    static_cast<void>(argument);
    return *(const T*)__builtin_amdgcn_kernarg_segment_ptr();
#endif
}

KVL_DEVICE uint32_t block_index() { return blockIdx.x; }
KVL_DEVICE void barrier() { __syncthreads(); }
template <class F>
KVL_DEVICE void each_thread(const F& f) {
    f(static_cast<uint32_t>(threadIdx.x));
}

// What a kernel reads and writes here is never shared memory, but a compiler can't know that of a number.
#if defined(__CUDACC__)
template <class V>
KVL_DEVICE V load(uint64_t address) {
    const auto read = [&](auto word) {
        word = __ldca(reinterpret_cast<const decltype(word)*>(address));  // ld.global, cached as by default
        return reinterpret_cast<const V&>(word);
    };
    if constexpr (sizeof(V) == 16) return read(uint4());
    if constexpr (sizeof(V) == 8) return read(uint2());
    if constexpr (sizeof(V) <= 4) return __ldca(reinterpret_cast<const V*>(address));
}
template <class V>
KVL_DEVICE void store(uint64_t address, const V& value) {
    if constexpr (sizeof(V) == 16)
        __stwb(reinterpret_cast<uint4*>(address), reinterpret_cast<const uint4&>(value));
    else if constexpr (sizeof(V) == 8)
        __stwb(reinterpret_cast<uint2*>(address), reinterpret_cast<const uint2&>(value));
    else
        __stwb(reinterpret_cast<V*>(address), value);
}
#else
template <class V>
KVL_DEVICE V load(uint64_t address) {
    V value;
    __builtin_memcpy(&value, (const __attribute__((address_space(1))) V*)address, sizeof(value));
    return value;
}
template <class V>
KVL_DEVICE void store(uint64_t address, const V& value) {
    __builtin_memcpy((__attribute__((address_space(1))) V*)address, &value, sizeof(value));
}
#endif

}  // namespace kvl

#else

#include <cstdlib>
#include <cstring>

#define KVL_DEVICE inline
#define KVL_UNROLL

namespace kvl {

inline thread_local uint32_t current_block;
inline thread_local bool barred;  // whether nothing has run since the last barrier

// How busy lanes are, phase by phase: the accesses to memory that all threads have made, and those that they would have
// made if all 32 lanes of a warp, or all 64, had made as many as the busiest one. kvl_twin_lanes() reads it.
struct Lanes {
    uint64_t made = 0, room[2] = {};
};
inline thread_local Lanes lanes;
inline thread_local uint32_t accesses;  // of the thread that runs
inline void count_lanes(const uint32_t* each) {
    for (uint32_t first = 0; first < kThreads; first += 64) {
        uint32_t most[2] = {};
        for (uint32_t i = 0; i < 64; ++i) {
            lanes.made += each[first + i];
            if (each[first + i] > most[i / 32]) most[i / 32] = each[first + i];
        }
        lanes.room[0] += 32 * (most[0] + most[1]);
        lanes.room[1] += 64 * (most[0] > most[1] ? most[0] : most[1]);
    }
}

inline void begin_block(uint32_t block) {
    current_block = block;
    barred = true;
}
inline uint32_t block_index() { return current_block; }
inline void barrier() { barred = true; }
template <class F>
inline void each_thread(const F& f) {
    if (!barred) std::abort();  // on a GPU threads would run ahead of each other into this phase
    barred = false;
    uint32_t each[kThreads];
    for (uint32_t thread = 0; thread < kThreads; ++thread) {
        accesses = 0;
        f(thread);
        each[thread] = accesses;
    }
    count_lanes(each);
}

// A GPU ends with an error where an access isn't aligned; so does this.
template <class V>
inline void check_aligned(uint64_t address) {
    ++accesses;
    if (address % sizeof(V)) std::abort();
}
template <class V>
inline V load(uint64_t address) {
    check_aligned<V>(address);
    V value;
    std::memcpy(&value, reinterpret_cast<const void*>(address), sizeof(value));
    return value;
}
template <class V>
inline void store(uint64_t address, const V& value) {
    check_aligned<V>(address);
    std::memcpy(reinterpret_cast<void*>(address), &value, sizeof(value));
}

}  // namespace kvl

#endif

#endif  // KVLINGUA_CUDA_PLATFORM_H_
