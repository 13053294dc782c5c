// Functions that GPUs run too.
#ifndef KVLINGUA_ANYWHERE_H_
#define KVLINGUA_ANYWHERE_H_

#if defined(__CUDACC__) || defined(__HIP__)
#define KVL_ANYWHERE __host__ __device__
#else
#define KVL_ANYWHERE
#endif

#endif  // KVLINGUA_ANYWHERE_H_
