// Prints checksums of a file's first bytes by all kernels that this CPU has, for somebody else to judge.
//
//     checksums FILE      a line each: kernels' number, bytes, digits
//
// Of every length up to two blocks of 1,024 bytes and some stripes of 64; then of all bytes, in runs of many lengths.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "kernels_here.h"
#include "kvlingua.h"

namespace {

constexpr uint64_t kLongest = 2300;

bool print(int32_t kernels, const std::string& data, const std::vector<kvl_span>& runs) {
    char digits[33] = {};
    const int32_t code = kvl_checksum(kernels, data.data(), runs.data(), static_cast<int64_t>(runs.size()), digits);
    if (code) std::fprintf(stderr, "checksums: kernels %d return %d\n", kernels, code);
    std::printf("%d %llu %s\n", kernels, static_cast<unsigned long long>(runs.back().end), digits);
    return code == KVL_OK;
}

}  // namespace

int main(int argc, char** argv) {
    std::ifstream file(argc == 2 ? argv[1] : "", std::ios::binary);
    if (!file) return std::fprintf(stderr, "usage: checksums FILE\n"), 2;
    const std::string data{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    bool good = true;
    for (const int32_t kernels : kernels_here()) {
        for (uint64_t bytes = 0; bytes <= std::min<uint64_t>(kLongest, data.size()); ++bytes)
            good &= print(kernels, data, {{0, bytes}});
        for (uint64_t run = 1; run <= data.size(); run = run * 3 + 1) {
            std::vector<kvl_span> runs;
            for (uint64_t at = 0; at < data.size(); at += run)
                runs.push_back({at, std::min<uint64_t>(at + run, data.size())});
            good &= print(kernels, data, runs);
        }
    }
    return good ? 0 : 1;
}
