// The C ABI of the kernels for GPUs: the very plans of kvlingua.h, their addresses being a device's.
//
// A library has it for one platform (CUDA, HIP, or the host twin that executes the same kernels on a CPU). It checks
// everything but the values of scales before it launches anything, launches all there is to do on the caller's stream,
// and returns. It never waits, keeps nothing and allocates no memory of the device, so a call may be captured in a
// graph: but not for a plan that compares, whose verdict the caller has to wait for. Calls may run at the same time
// from several threads.
#ifndef KVLINGUA_GPU_H_
#define KVLINGUA_GPU_H_

#include "kvlingua.h"

// Version of this header, and of the plans in it; a caller refuses any other than its own.
#define KVL_GPU_ABI_VERSION (100 * KVL_ABI_VERSION + 3)
KVL_API int32_t kvl_gpu_abi_version(void);

// "cuda", "hip", or "host" for the twin.
KVL_API const char* kvl_gpu_platform(void);

// Beside the codes of kvlingua.h: this much more than an error of the platform's own.
enum { KVL_PLATFORM_ERROR = 1000 };
// And this: the plan compares, and its stream is being captured in a graph.
enum { KVL_GPU_CAPTURED = 900 };
// What a code means, in one sentence. Never null; what is said of an error of the platform is the platform's.
KVL_API const char* kvl_gpu_message(int32_t code);

// Devices that there are.
KVL_API int32_t kvl_gpu_devices(int32_t* count);

typedef struct kvl_gpu_device {
    char name[256];
    char pci[64];             // its place on the bus, as in /sys/bus/pci/devices but for upper case
    int32_t multiprocessors;  // or compute units
    int32_t reserved;
} kvl_gpu_device;
KVL_API int32_t kvl_gpu_describe(int32_t device, kvl_gpu_device* found);

// KVL_OK if this library has code for a device. All of it is loaded then, also where the platform is set to load
// kernels at their first launch, and also while this thread captures a graph.
KVL_API int32_t kvl_gpu_ready(int32_t device);

// Loads a code object that was built for a device's architecture (csrc/cuda/device_code.cu), to be launched there from
// then on in place of what the library lacks. KVL_UNSUPPORTED but on HIP. It stays loaded.
KVL_API int32_t kvl_gpu_load(int32_t device, const void* code_object);

// Pins memory of the host, so that kernels of all devices reach it, until it is unpinned. The device is the one that
// does it, for all.
KVL_API int32_t kvl_gpu_pin(int32_t device, void* memory, int64_t bytes);
// Where a device sees memory that was pinned, which on AMD's may be at another address than the host does.
KVL_API int32_t kvl_gpu_mapped(int32_t device, void* memory, uint64_t* address);
KVL_API int32_t kvl_gpu_unpin(int32_t device, void* memory);

// A plain copy by a copy engine, between a device's memory and pinned memory or its own. It is launched, not waited
// for.
KVL_API int32_t kvl_gpu_copy(int32_t device, void* stream, void* target, const void* source, int64_t bytes);

// A second stream, for copies beside kernels, and events to order both by; `events` is an array of that many. Nothing
// on the default stream waits for it. Made for one thread, which ends it when it needs it no more: what was launched
// there still runs to its end.
KVL_API int32_t kvl_gpu_begin_lane(int32_t device, void** stream, void** events, int32_t count);
KVL_API int32_t kvl_gpu_end_lane(int32_t device, void* stream, void** events, int32_t count);
// Marks where a stream has come to; what comes on a stream from now on waits for the mark, as it is now. Neither waits.
KVL_API int32_t kvl_gpu_record(int32_t device, void* event, void* stream);
KVL_API int32_t kvl_gpu_follow(int32_t device, void* stream, void* event);

// Whether what is launched on a stream goes into a graph: 1, else 0.
KVL_API int32_t kvl_gpu_captured(int32_t device, void* stream, int32_t* found);

// Waits for what was launched on a stream, and for nothing else. Only a caller that needs a verdict has to.
KVL_API int32_t kvl_gpu_wait(int32_t device, void* stream);

typedef struct kvl_gpu_call {
    const kvl_plan* plan;  // its threads, kernels and stream_bytes mean nothing here
    void* stream;          // of that device: a cudaStream_t or hipStream_t; null: the default one
    // The address of 4 bytes that host and device share, 0 at first. Where scales that must be equal differ it becomes
    // KVL_SCALES, and then nothing is written. Needed by plans that compare (KVL_COPY_EQUAL, once), else null. Without
    // one KVL_NULL says that all but this is right: making one may be forbidden while a stream is captured.
    uint64_t verdict;
    int32_t device;
    int32_t block_bytes;  // the most that a grid block moves, or nearly so; 0: the library's choice
    int32_t blocks;       // grid blocks that keep the device busy; 0: the library's choice
    int32_t reserved;     // 0
    // Where all that is converted is in pieces of at least so many bytes that lie alike on both sides, those that
    // follow each other within a span of both taken for one, copy engines move them and no kernel is launched; 0:
    // never.
    int64_t piece_bytes;
} kvl_gpu_call;

// In how many pieces copy engines would move it; 0: a kernel would. Nothing is launched.
KVL_API int32_t kvl_gpu_pieces(const kvl_gpu_call* call, int64_t* count);

// KVL_OK: everything was launched. With an error of the platform, part of it may have been.
KVL_API int32_t kvl_gpu_convert(const kvl_gpu_call* call);

#endif  // KVLINGUA_GPU_H_
