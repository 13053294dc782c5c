#include "arenas.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#if defined(KVL_ASAN)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size) (static_cast<void>(address), static_cast<void>(size))
#define ASAN_UNPOISON_MEMORY_REGION(address, size) (static_cast<void>(address), static_cast<void>(size))
#endif

namespace arenas {
namespace {

constexpr uint64_t kGuard = 64 << 10;  // a multiple of every page size in use

uint8_t* make() {
    const uint64_t bytes = kBytes + 2 * kGuard;
    void* memory = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) std::perror("mmap"), std::abort();
    uint8_t* inside = static_cast<uint8_t*>(memory) + kGuard;
    if (mprotect(inside, kBytes, PROT_READ | PROT_WRITE)) std::perror("mprotect"), std::abort();
    return inside;
}

}  // namespace

uint8_t* piece(int side, int index) {
    static uint8_t* const made[kSides][kPieces] = {{make(), make()}, {make(), make()}};
    return made[side][index];
}

bool find(uint64_t address, uint64_t bytes, int* side, int* index, uint64_t* offset) {
    for (*side = 0; *side < kSides; ++*side)
        for (*index = 0; *index < kPieces; ++*index) {
            *offset = address - reinterpret_cast<uint64_t>(piece(*side, *index));
            if (*offset < kBytes && bytes <= kBytes - *offset) return true;
        }
    return false;
}

void fill(uint64_t seed) {
    uint64_t state = seed * 2 + 1;
    for (int side = 0; side < kSides; ++side)
        for (int index = 0; index < kPieces; ++index)
            for (uint64_t i = 0; i < kBytes; i += 8) {
                state = state * 6364136223846793005u + 1442695040888963407u;
                const uint64_t bits = state ^ state >> 29;
                std::memcpy(piece(side, index) + i, &bits, 8);
            }
}

void fill_with(uint8_t byte) {
    for (int side = 0; side < kSides; ++side)
        for (int index = 0; index < kPieces; ++index) std::memset(piece(side, index), byte, kBytes);
}

std::vector<uint8_t> contents(int side) {
    std::vector<uint8_t> bytes;
    bytes.reserve(kPieces * kBytes);
    for (int index = 0; index < kPieces; ++index)
        bytes.insert(bytes.end(), piece(side, index), piece(side, index) + kBytes);
    return bytes;
}

void close() {
    for (int side = 0; side < kSides; ++side)
        for (int index = 0; index < kPieces; ++index) ASAN_POISON_MEMORY_REGION(piece(side, index), kBytes);
}

void open(const std::vector<kvl_span>& spans) {
    for (const kvl_span& span : spans)
        if (span.begin < span.end)
            ASAN_UNPOISON_MEMORY_REGION(reinterpret_cast<void*>(span.begin), span.end - span.begin);
}

void open() {
    for (int side = 0; side < kSides; ++side)
        for (int index = 0; index < kPieces; ++index) ASAN_UNPOISON_MEMORY_REGION(piece(side, index), kBytes);
}

}  // namespace arenas
