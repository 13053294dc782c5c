// The memory that a fuzzed plan may describe: four pieces between pages that can't be touched.
#ifndef KVLINGUA_TESTS_ARENAS_H_
#define KVLINGUA_TESTS_ARENAS_H_

#include <cstdint>
#include <vector>

#include "kvlingua.h"

namespace arenas {

constexpr int kSides = 2, kPieces = 2;  // source and target, each with two pieces
constexpr uint64_t kBytes = 32 << 10;   // of a piece

// The first byte of a piece. Made at first use, never freed.
uint8_t* piece(int side, int index);

// The piece that holds [address, address + bytes), and where it begins in it; false if none does.
bool find(uint64_t address, uint64_t bytes, int* side, int* index, uint64_t* offset);

// Fills all pieces with random bytes, or with one byte.
void fill(uint64_t seed);
void fill_with(uint8_t byte);

// What a side's pieces hold.
std::vector<uint8_t> contents(int side);

// Under AddressSanitizer nothing can be touched between `close` and `open` but `spans`. Pages beside the pieces never
// can.
void close();
void open(const std::vector<kvl_span>& spans);
void open();

}  // namespace arenas

#endif  // KVLINGUA_TESTS_ARENAS_H_
