// The few calls of a platform's run time that launches need. Each returns the platform's own error, 0 if there is none.
#ifndef KVLINGUA_CUDA_RUNTIME_H_
#define KVLINGUA_CUDA_RUNTIME_H_

#include <cstring>
#include <vector>

#include "../kvlingua_gpu.h"
#include "kernel.h"
#include "large_pieces.h"
#include "platform.h"

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

// Makes a device the thread's own while it lives.
class OnDevice {
  public:
    explicit OnDevice(int device) : device_(device) {
        error_ = KVL_RUNTIME(GetDevice)(&before_);
        if (!error_ && before_ != device_) error_ = KVL_RUNTIME(SetDevice)(device_);
    }
    ~OnDevice() {
        if (!error_ && before_ != device_) static_cast<void>(KVL_RUNTIME(SetDevice)(before_));
    }
    OnDevice(const OnDevice&) = delete;
    OnDevice& operator=(const OnDevice&) = delete;
    int error() const { return error_; }

  private:
    int device_, before_ = 0, error_;
};

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

inline int pin(void* memory, size_t bytes, void** mapped) {
#if defined(__HIP__)
    constexpr unsigned kFlags = hipHostRegisterPortable | hipHostRegisterMapped;
#else
    constexpr unsigned kFlags = cudaHostRegisterPortable | cudaHostRegisterMapped;
#endif
    const int error = KVL_RUNTIME(HostRegister)(memory, bytes, kFlags);
    return error ? error : KVL_RUNTIME(HostGetDevicePointer)(mapped, memory, 0);
}
inline int unpin(void* memory) { return KVL_RUNTIME(HostUnregister)(memory); }

inline int wait(void* stream) { return KVL_RUNTIME(StreamSynchronize)(static_cast<KVL_RUNTIME(Stream_t)>(stream)); }

template <uint32_t kWords>
int run_kernel(Work<kWords>* work, uint32_t blocks, void* stream) {
    void* arguments[] = {work};
    return KVL_RUNTIME(LaunchKernel)(reinterpret_cast<const void*>(&convert_kernel<kWords>), dim3(blocks),
                                     dim3(kThreads), arguments, 0, static_cast<KVL_RUNTIME(Stream_t)>(stream));
}

// The pieces, in any order: by one call where the platform has one for many, and is not capturing a graph.
inline int copy_pieces(const std::vector<Piece>& pieces, void* queue) {
    const auto stream = static_cast<KVL_RUNTIME(Stream_t)>(queue);
#if defined(__CUDACC__)
    cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    if (const int error = cudaStreamIsCapturing(stream, &capture)) return error;
    if (pieces.size() > 1 && stream && capture == cudaStreamCaptureStatusNone) {
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

inline int describe(int, kvl_gpu_device* found) {
    std::memcpy(found->name, "host twin", sizeof("host twin"));
    found->multiprocessors = 1;
    return 0;
}
inline int pin(void* memory, size_t, void** mapped) { return *mapped = memory, 0; }
inline int unpin(void*) { return 0; }
inline int wait(void*) { return 0; }

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
int run_kernel(Work<kWords>* work, uint32_t blocks, void*) {
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
