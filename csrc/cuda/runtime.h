// The few calls of a platform's run time that launches need. Each returns the platform's own error, 0 if there is none.
#ifndef KVLINGUA_CUDA_RUNTIME_H_
#define KVLINGUA_CUDA_RUNTIME_H_

#include <atomic>
#include <cstring>
#include <vector>

#include "../kvlingua_gpu.h"
#include "kernel.h"
#include "large_pieces.h"
#include "platform.h"

#if defined(__CUDACC__)
#include <cuda.h>
#endif

#if defined(__HIP__)
#define KVL_RUNTIME(name) hip##name
#elif defined(__CUDACC__)
#define KVL_RUNTIME(name) cuda##name
#endif

namespace kvl {

#if defined(KVL_RUNTIME)

inline int devices(int* count) { return KVL_RUNTIME(GetDeviceCount)(count); }
inline const char* error_text(int error) {
    return KVL_RUNTIME(GetErrorString)(static_cast<KVL_RUNTIME(Error_t)>(error));
}

// A failed call leaves its error behind, which the next one to ask (torch after a launch of its own) would take for its
// own.
inline void forget_error() { static_cast<void>(KVL_RUNTIME(GetLastError)()); }

// Makes a device the thread's own while it lives.
#if defined(__HIP__)
class OnDevice {
  public:
    explicit OnDevice(int device) : device_(device) {
        error_ = hipGetDevice(&before_);
        if (!error_ && before_ != device_) error_ = hipSetDevice(device_);
    }
    ~OnDevice() {
        if (!error_ && before_ != device_) static_cast<void>(hipSetDevice(before_));
    }
    OnDevice(const OnDevice&) = delete;
    OnDevice& operator=(const OnDevice&) = delete;
    int error() const { return error_; }

  private:
    int device_, before_ = 0, error_;
};
#else
// The context of a device is pushed on the thread's stack of contexts and popped again. cudaSetDevice() could not undo
// itself in a thread that has no context yet: it would make one on the device that it goes back to.
class OnDevice {
  public:
    explicit OnDevice(int device) {
        const Driver& driver = Driver::get();
        int current = 0;
        if ((error_ = driver.error)) return;
        // It answers with an error where the thread has none.
        if (driver.current_device(&current) == 0 && current == device) return;
        // Kept until the process ends, as the run time keeps it: freeing it would free what was allocated there.
        CUcontext context = nullptr;
        error_ = driver.retain(&context, device);
        if (!error_) error_ = driver.push(context);
        pushed_ = !error_;
    }
    ~OnDevice() {
        CUcontext popped = nullptr;
        if (pushed_) static_cast<void>(Driver::get().pop(&popped));
    }
    OnDevice(const OnDevice&) = delete;
    OnDevice& operator=(const OnDevice&) = delete;
    int error() const { return error_; }

  private:
    // What the run time has no words for, asked for by name, so that the library loads where there is no driver. Its
    // errors have the numbers of the run time's.
    struct Driver {
        int (*initialise)(unsigned) = nullptr;
        int (*current_device)(int*) = nullptr;
        int (*retain)(CUcontext*, int) = nullptr;
        int (*push)(CUcontext) = nullptr;
        int (*pop)(CUcontext*) = nullptr;
        int error = 0;

        static const Driver& get() {
            static const Driver driver;
            return driver;
        }

      private:
        Driver() {
            find("cuInit", 2000, &initialise);
            find("cuCtxGetDevice", 2000, &current_device);
            find("cuDevicePrimaryCtxRetain", 7000, &retain);
            find("cuCtxPushCurrent", 4000, &push);
            find("cuCtxPopCurrent", 4000, &pop);
            if (!error) error = initialise(0);
        }
        template <class F>
        void find(const char* name, unsigned version, F* function) {
            void* found = nullptr;
            cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
            if (!error) error = cudaGetDriverEntryPointByVersion(name, &found, version, cudaEnableDefault, &result);
            if (!error && result != cudaDriverEntryPointSuccess) error = cudaErrorSymbolNotFound;
            *function = reinterpret_cast<F>(found);
        }
    };

    int error_ = 0;
    bool pushed_ = false;
};
#endif

inline int describe(int device, kvl_gpu_device* found) {
#if defined(__HIP__)
    int error = hipDeviceGetName(found->name, sizeof(found->name), device);
    if (!error) error = hipDeviceGetAttribute(&found->multiprocessors, hipDeviceAttributeMultiprocessorCount, device);
#else
    cudaDeviceProp properties;
    int error = cudaGetDeviceProperties(&properties, device);
    if (!error) {
        std::memcpy(found->name, properties.name, sizeof(found->name) - 1);
        found->multiprocessors = properties.multiProcessorCount;
    }
#endif
    return error ? error : KVL_RUNTIME(DeviceGetPCIBusId)(found->pci, sizeof(found->pci), device);
}

// Memory may be made, and code loaded, in a thread that captures a graph elsewhere: neither goes into that.
class Relaxed {
  public:
    Relaxed() { error_ = KVL_RUNTIME(ThreadExchangeStreamCaptureMode)(&mode_); }
    ~Relaxed() {
        if (!error_) static_cast<void>(KVL_RUNTIME(ThreadExchangeStreamCaptureMode)(&mode_));
    }
    Relaxed(const Relaxed&) = delete;
    Relaxed& operator=(const Relaxed&) = delete;
    int error() const { return error_; }

  private:
    KVL_RUNTIME(StreamCaptureMode) mode_ = KVL_RUNTIME(StreamCaptureModeRelaxed);
    int error_;
};

inline int pin(void* memory, size_t bytes) {
#if defined(__HIP__)
    constexpr unsigned kFlags = hipHostRegisterPortable | hipHostRegisterMapped;
#else
    constexpr unsigned kFlags = cudaHostRegisterPortable | cudaHostRegisterMapped;
#endif
    return KVL_RUNTIME(HostRegister)(memory, bytes, kFlags);
}
inline int mapped(void* memory, void** found) { return KVL_RUNTIME(HostGetDevicePointer)(found, memory, 0); }
inline int unpin(void* memory) { return KVL_RUNTIME(HostUnregister)(memory); }

inline int begin_stream(void** stream) {
    return KVL_RUNTIME(StreamCreateWithFlags)(reinterpret_cast<KVL_RUNTIME(Stream_t)*>(stream),
                                              KVL_RUNTIME(StreamNonBlocking));
}
inline int end_stream(void* stream) { return KVL_RUNTIME(StreamDestroy)(static_cast<KVL_RUNTIME(Stream_t)>(stream)); }
inline int begin_event(void** event) {
    return KVL_RUNTIME(EventCreateWithFlags)(reinterpret_cast<KVL_RUNTIME(Event_t)*>(event),
                                             KVL_RUNTIME(EventDisableTiming));
}
inline int end_event(void* event) { return KVL_RUNTIME(EventDestroy)(static_cast<KVL_RUNTIME(Event_t)>(event)); }
inline int record(void* event, void* stream) {
    return KVL_RUNTIME(EventRecord)(static_cast<KVL_RUNTIME(Event_t)>(event),
                                    static_cast<KVL_RUNTIME(Stream_t)>(stream));
}
inline int follow(void* stream, void* event) {
    return KVL_RUNTIME(StreamWaitEvent)(static_cast<KVL_RUNTIME(Stream_t)>(stream),
                                        static_cast<KVL_RUNTIME(Event_t)>(event), 0);
}

inline int wait(void* stream) { return KVL_RUNTIME(StreamSynchronize)(static_cast<KVL_RUNTIME(Stream_t)>(stream)); }

// Whether what is launched on a stream goes into a graph.
inline int captures(void* stream, bool* found) {
    auto status = KVL_RUNTIME(StreamCaptureStatusNone);
    const int error = KVL_RUNTIME(StreamIsCapturing)(static_cast<KVL_RUNTIME(Stream_t)>(stream), &status);
    *found = status != KVL_RUNTIME(StreamCaptureStatusNone);
    return error;
}

// Loads a kernel on the thread's device; an error if the library has no code for that.
template <uint32_t kWords>
int load_kernel() {
    KVL_RUNTIME(FuncAttributes) attributes;
    return KVL_RUNTIME(FuncGetAttributes)(&attributes, reinterpret_cast<const void*>(&convert_kernel<kWords>));
}

#if defined(__HIP__)
// The kernels that were built for a device because the library has none, by the device's number.
constexpr int kMostDevices = 64;
inline std::atomic<hipFunction_t> loaded_kernels[kMostDevices];

inline int load_code(int device, const void* code_object) {
    if (device >= kMostDevices) return hipErrorInvalidDevice;
    hipModule_t module = nullptr;
    hipFunction_t kernel = nullptr;
    int error = hipModuleLoadData(&module, code_object);
    if (error) return error;
    error = hipModuleGetFunction(&kernel, module, "kvl_built_kernel");
    if (error)
        static_cast<void>(hipModuleUnload(module));
    else
        loaded_kernels[device] = kernel;
    return error;
}
#endif

template <uint32_t kWords>
int run_kernel(Work<kWords>* work, uint32_t blocks, [[maybe_unused]] int device, void* stream) {
    void* arguments[] = {work};
#if defined(__HIP__)
    static_assert(kWords == kSmallWords);
    if (device < kMostDevices)
        if (const hipFunction_t kernel = loaded_kernels[device])
            return hipModuleLaunchKernel(kernel, blocks, 1, 1, kThreads, 1, 1, 0, static_cast<hipStream_t>(stream),
                                         arguments, nullptr);
#endif
    return KVL_RUNTIME(LaunchKernel)(reinterpret_cast<const void*>(&convert_kernel<kWords>), dim3(blocks),
                                     dim3(kThreads), arguments, 0, static_cast<KVL_RUNTIME(Stream_t)>(stream));
}

// The pieces, in any order: by one call where the platform has one for many, which CUDA has since 13 for all streams
// but the default one, and not for a graph; else by one call each.
inline int copy_pieces(const std::vector<Piece>& pieces, void* queue) {
    const auto stream = static_cast<KVL_RUNTIME(Stream_t)>(queue);
#if defined(CUDART_VERSION) && CUDART_VERSION >= 13000
    bool captured = false;
    if (const int error = captures(queue, &captured)) return error;
    const bool is_default = !stream || stream == cudaStreamLegacy || stream == cudaStreamPerThread;
    if (pieces.size() > 1 && !is_default && !captured) {
        std::vector<void*> to(pieces.size());
        std::vector<const void*> from(pieces.size());
        std::vector<size_t> bytes(pieces.size());
        for (size_t i = 0; i < pieces.size(); ++i) {
            from[i] = reinterpret_cast<const void*>(pieces[i].source);
            to[i] = reinterpret_cast<void*>(pieces[i].target);
            bytes[i] = pieces[i].bytes;
        }
        cudaMemcpyAttributes attributes = {};
        attributes.srcAccessOrder = cudaMemcpySrcAccessOrderStream;
        return cudaMemcpyBatchAsync(to.data(), from.data(), bytes.data(), pieces.size(), attributes, stream);
    }
#endif
    int error = 0;
    for (size_t i = 0; i < pieces.size() && !error; ++i)
        error = KVL_RUNTIME(MemcpyAsync)(reinterpret_cast<void*>(pieces[i].target),
                                         reinterpret_cast<const void*>(pieces[i].source), pieces[i].bytes,
                                         KVL_RUNTIME(MemcpyDefault), stream);
    return error;
}

#else

inline int devices(int* count) { return *count = 1, 0; }
inline const char* error_text(int) { return "unknown error"; }
inline void forget_error() {}

inline int describe(int, kvl_gpu_device* found) {
    std::memcpy(found->name, "host twin", sizeof("host twin"));
    found->multiprocessors = 1;
    return 0;
}
class Relaxed {
  public:
    int error() const { return 0; }
};
inline int pin(void*, size_t) { return 0; }
inline int mapped(void* memory, void** found) { return *found = memory, 0; }
inline int unpin(void*) { return 0; }
inline int wait(void*) { return 0; }
// There are no streams, so what is in order on one is in order on all.
inline int begin_stream(void** stream) { return *stream = nullptr, 0; }
inline int end_stream(void*) { return 0; }
inline int begin_event(void** event) { return *event = nullptr, 0; }
inline int end_event(void*) { return 0; }
inline int record(void*, void*) { return 0; }
inline int follow(void*, void*) { return 0; }
// There are no streams here. One that isn't the default one stands for one that is captured.
inline int captures(void* stream, bool* found) { return *found = stream, 0; }
template <uint32_t>
int load_kernel() {
    return 0;
}

inline int copy_pieces(const std::vector<Piece>& pieces, void*) {
    for (const Piece& piece : pieces)
        std::memcpy(reinterpret_cast<void*>(piece.target), reinterpret_cast<const void*>(piece.source), piece.bytes);
    return 0;
}

class OnDevice {
  public:
    explicit OnDevice(int) {}
    int error() const { return 0; }
};

// One grid block after the other. What they find in shared memory is what another one left there, not zeros.
template <uint32_t kWords>
int run_kernel(Work<kWords>* work, uint32_t blocks, int, void*) {
    static thread_local Scratch scratch;
    for (uint32_t block = 0; block < blocks; ++block) {
        begin_block(block);
        std::memset(static_cast<void*>(&scratch), 0xa5, sizeof(scratch));
        run_block(work->head, work->words, &scratch);
    }
    return 0;
}

#endif

}  // namespace kvl

#endif  // KVLINGUA_CUDA_RUNTIME_H_
