// The words of HIP that kernels use, for a clang that knows AMD's architectures on a machine without ROCm: enough to
// compile device code, to be checked. Libraries are built with hipcc and HIP's own header.
#ifndef KVLINGUA_ROCM_PRELUDE_H_
#define KVLINGUA_ROCM_PRELUDE_H_

#define __global__ __attribute__((global))
#define __device__ __attribute__((device))
#define __host__ __attribute__((host))
#define __shared__ __attribute__((shared))
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(threads) __attribute__((amdgpu_flat_work_group_size(1, threads)))

struct kvl_thread_index {
    __declspec(property(get = get_x)) unsigned x;
    __device__ unsigned get_x() const { return __builtin_amdgcn_workitem_id_x(); }
};
struct kvl_block_index {
    __declspec(property(get = get_x)) unsigned x;
    __device__ unsigned get_x() const { return __builtin_amdgcn_workgroup_id_x(); }
};
static const __device__ kvl_thread_index threadIdx;
static const __device__ kvl_block_index blockIdx;

static inline __device__ void __syncthreads() {
    __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup");
    __builtin_amdgcn_s_barrier();
    __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup");
}

#endif  // KVLINGUA_ROCM_PRELUDE_H_
