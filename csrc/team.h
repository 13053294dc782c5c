// A few threads for one call.
#ifndef KVLINGUA_TEAM_H_
#define KVLINGUA_TEAM_H_

#include <cstdint>
#include <exception>
#include <thread>
#include <vector>

namespace kvl {

// work(0) here and work(1) ... work(count - 1) each in a thread of its own. Where there are no more threads to be had,
// those that are do with fewer: work must share itself out, not count on its number. It may not throw.
template <typename Work>
void run_team(int64_t count, const Work& work) {
    std::vector<std::thread> threads;
    try {
        threads.reserve(static_cast<size_t>(count));
        for (int64_t i = 1; i < count; ++i) threads.emplace_back([&work, i] { work(i); });
    } catch (const std::exception&) {
    }
    work(0);
    for (std::thread& thread : threads) thread.join();
}

}  // namespace kvl

#endif  // KVLINGUA_TEAM_H_
