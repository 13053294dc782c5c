// Runs a fuzz target without libFuzzer: random inputs, and mutations of those that did something new.
//
//     fuzz_cpu [--runs N] [--seconds N] [--seed N] [FILE ...]      files are inputs to be tried first
//
// The same seed gives the same inputs. An input that fails is written to fuzz-failure.bin.
#include <fcntl.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <fstream>
#include <iterator>
#include <map>
#include <random>
#include <vector>

#include "fuzz.h"
#include "kernels_here.h"

#if defined(KVL_ASAN)
#include <sanitizer/common_interface_defs.h>
#endif

namespace {

using Input = std::vector<uint8_t>;

constexpr size_t kMostBytes = 600, kMostKept = 512;

const Input* current = nullptr;

void keep_failure() {
    if (!current) return;
    const int file = open("fuzz-failure.bin", O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (file < 0) return;
    const bool whole = write(file, current->data(), current->size()) == static_cast<ssize_t>(current->size());
    const char* said = whole ? "fuzz: the input is in fuzz-failure.bin\n" : "fuzz: the input could not be kept\n";
    if (write(2, said, std::strlen(said)) < 0) return;
    close(file);
}

void on_signal(int signal) {
    keep_failure();
    std::signal(signal, SIG_DFL);
    std::raise(signal);
}

void run(const Input& input) {
    current = &input;
    LLVMFuzzerTestOneInput(input.data(), input.size());
    current = nullptr;
}

Input random_input(std::mt19937_64& random) {
    Input input(random() % kMostBytes);
    for (uint8_t& byte : input) byte = static_cast<uint8_t>(random());
    return input;
}

void mutate(Input* input, std::mt19937_64& random) {
    static const uint8_t edges[] = {0, 1, 2, 7, 8, 15, 16, 31, 63, 64, 127, 128, 255};
    for (uint64_t changes = 1 + random() % 4; changes && !input->empty(); --changes) {
        const size_t at = random() % input->size();
        switch (random() % 5) {
            case 0:
                (*input)[at] = edges[random() % sizeof edges];
                break;
            case 1:
                (*input)[at] = static_cast<uint8_t>((*input)[at] + (random() % 2 ? 1 : -1));
                break;
            case 2:
                input->insert(input->begin() + static_cast<std::ptrdiff_t>(at), static_cast<uint8_t>(random()));
                break;
            case 3:
                input->erase(input->begin() + static_cast<std::ptrdiff_t>(at));
                break;
            default:
                (*input)[at] = static_cast<uint8_t>(random());
        }
    }
}

[[noreturn]] void usage() {
    std::fprintf(stderr, "usage: fuzz_cpu, fuzz_gpu [--runs N] [--seconds N] [--seed N] [FILE ...]\n");
    std::exit(2);
}

}  // namespace

int main(int argc, char** argv) {
    uint64_t runs = 0, seed = 1;
    double seconds = 0;
    std::vector<Input> kept;
    for (int i = 1; i < argc; ++i) {
        const bool number = i + 1 < argc;
        if (!std::strcmp(argv[i], "--runs") && number)
            runs = std::strtoull(argv[++i], nullptr, 10);
        else if (!std::strcmp(argv[i], "--seconds") && number)
            seconds = std::strtod(argv[++i], nullptr);
        else if (!std::strcmp(argv[i], "--seed") && number)
            seed = std::strtoull(argv[++i], nullptr, 10);
        else if (argv[i][0] == '-')
            usage();
        else {
            std::ifstream file(argv[i], std::ios::binary);
            if (!file) std::fprintf(stderr, "fuzz: can't read %s\n", argv[i]), std::exit(2);
            kept.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
        }
    }
    std::signal(SIGABRT, on_signal);
#if defined(KVL_ASAN)
    __sanitizer_set_death_callback(keep_failure);
#else
    for (const int signal : {SIGSEGV, SIGBUS}) std::signal(signal, on_signal);
#endif
    for (const Input& input : kept) run(input);
    std::mt19937_64 random(seed);
    std::map<int32_t, uint64_t> codes, kernels;  // kernels: of plans that ran
    uint64_t done = 0, refused = 0;
    const std::clock_t began = std::clock();
    const auto elapsed = [&] { return static_cast<double>(std::clock() - began) / CLOCKS_PER_SEC; };
    for (; (runs && done < runs) || (seconds > 0 && elapsed() < seconds); ++done) {
        Input input = kept.empty() || random() % 3 == 0 ? random_input(random) : kept[random() % kept.size()];
        if (!kept.empty()) mutate(&input, random);
        run(input);
        ++codes[last_verdict().code];
        refused += last_verdict().must_refuse;
        if (last_verdict().code != 0) continue;
        ++kernels[last_verdict().kernels];
        if (kept.size() < kMostKept)
            kept.push_back(std::move(input));
        else if (random() % 8 == 0)
            kept[random() % kMostKept] = std::move(input);
    }
    std::printf("fuzz: seed %llu, %llu runs, %llu of them plans that must be refused; codes",
                static_cast<unsigned long long>(seed), static_cast<unsigned long long>(done),
                static_cast<unsigned long long>(refused));
    for (const auto& [code, count] : codes) std::printf(" %d:%llu", code, static_cast<unsigned long long>(count));
    std::printf("; ran with kernels");
    for (const auto& [which, count] : kernels) std::printf(" %d:%llu", which, static_cast<unsigned long long>(count));
    std::printf("\n");
    bool few = codes[0] < done / 10;
    for (const int32_t which : kernels_here()) few |= kernels[which] < done / 20;
    return runs && few ? (std::fprintf(stderr, "fuzz: too few plans ran to show anything\n"), 1) : 0;
}
