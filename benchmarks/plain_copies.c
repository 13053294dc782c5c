// Plain copies with stores that bypass the cache, the independent measure of what this machine's memory can do.
// Nothing of kvlingua's own is used; the benchmarks compile this file when they run.
#include <stddef.h>

#if defined(__x86_64__)
#include <immintrin.h>

// `size` is a multiple of 64, `target` is aligned to 64 bytes; the source is fetched `AHEAD` bytes before it is read.
#define STREAM(NAME, FEATURES, AHEAD, LINE)                                                      \
    __attribute__((target(FEATURES))) void NAME(char* target, const char* source, size_t size) { \
        for (size_t i = 0; i < size; i += 64) {                                                  \
            if (AHEAD) _mm_prefetch(source + i + AHEAD, _MM_HINT_T0);                            \
            LINE                                                                                 \
        }                                                                                        \
        _mm_sfence();                                                                            \
    }

#define LINE_128                     \
    for (int j = 0; j < 64; j += 16) \
        _mm_stream_si128((__m128i*)(target + i + j), _mm_loadu_si128((const __m128i*)(source + i + j)));
#define LINE_256                     \
    for (int j = 0; j < 64; j += 32) \
        _mm256_stream_si256((__m256i*)(target + i + j), _mm256_loadu_si256((const __m256i*)(source + i + j)));
#define LINE_512 _mm512_stream_si512((__m512i*)(target + i), _mm512_loadu_si512(source + i));

STREAM(stream_sse2, "sse2", 0, LINE_128)
STREAM(stream_sse2_ahead_1k, "sse2", 1024, LINE_128)
STREAM(stream_avx2, "avx2", 0, LINE_256)
STREAM(stream_avx2_ahead_1k, "avx2", 1024, LINE_256)
STREAM(stream_avx2_ahead_4k, "avx2", 4096, LINE_256)
STREAM(stream_avx512, "avx512f", 0, LINE_512)
STREAM(stream_avx512_ahead_1k, "avx512f", 1024, LINE_512)
STREAM(stream_avx512_ahead_4k, "avx512f", 4096, LINE_512)

// The string instruction, for comparison: some CPUs bypass the cache with it as well.
void rep_movsb(char* target, const char* source, size_t size) {
    __asm__ volatile("rep movsb" : "+D"(target), "+S"(source), "+c"(size) : : "memory");
}

static const char* const kNames[] = {"stream_sse2",
                                     "stream_sse2_ahead_1k",
                                     "stream_avx2",
                                     "stream_avx2_ahead_1k",
                                     "stream_avx2_ahead_4k",
                                     "stream_avx512",
                                     "stream_avx512_ahead_1k",
                                     "stream_avx512_ahead_4k",
                                     "rep_movsb"};

// The i-th copy that this CPU can run, or null after the last.
const char* copy_name(int i) {
    const int usable = __builtin_cpu_supports("avx512f") ? 8 : __builtin_cpu_supports("avx2") ? 5 : 2;
    return i < usable ? kNames[i] : i == usable ? kNames[8] : NULL;
}
#elif defined(__aarch64__)
void stream_stnp(char* target, const char* source, size_t size) {
    for (size_t i = 0; i < size; i += 64)
        __asm__ volatile("ldp q0, q1, [%1]\n ldp q2, q3, [%1, #32]\n stnp q0, q1, [%0]\n stnp q2, q3, [%0, #32]"
                         :
                         : "r"(target + i), "r"(source + i)
                         : "v0", "v1", "v2", "v3", "memory");
}
const char* copy_name(int i) { return i == 0 ? "stream_stnp" : NULL; }
#else
const char* copy_name(int i) {
    (void)i;
    return NULL;
}
#endif
