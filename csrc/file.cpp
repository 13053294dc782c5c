#include "file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

namespace kvl {

File::File(int folder, const char* name, int flags, int64_t bytes) {
    do descriptor_ = openat(folder, name, flags | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    while (descriptor_ < 0 && errno == EINTR);
    struct stat found;
    if (descriptor_ < 0 || fstat(descriptor_, &found) != 0)
        failed(KVL_SYSTEM, errno);
    else if (!S_ISREG(found.st_mode) || found.st_uid != geteuid() || (found.st_mode & 022))
        failed(KVL_FOREIGN, 0);
    else if (found.st_size != bytes)
        failed(KVL_OTHER_SIZE, 0);
}

File::~File() { close(); }

bool File::failed(int32_t status, int32_t error) {
    status_ = status;
    error_ = error;
    return false;
}

bool File::read(char* into, uint64_t from, uint64_t to) {
    while (from < to) {
        const ssize_t count = pread(descriptor_, into, to - from, static_cast<off_t>(from));
        if (count == 0) return failed(KVL_OTHER_SIZE, 0);
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) return failed(KVL_SYSTEM, errno);
        into += count;
        from += static_cast<uint64_t>(count);
    }
    return true;
}

bool File::write(const char* data, uint64_t bytes) {
    for (uint64_t at = 0; at < bytes;) {
        const ssize_t count = pwrite(descriptor_, data + at, bytes - at, static_cast<off_t>(at));
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) return failed(KVL_SYSTEM, errno);
        at += static_cast<uint64_t>(count);
    }
    return true;
}

bool File::close() {
    const int descriptor = descriptor_;
    descriptor_ = -1;
    // After EINTR it is closed as well.
    return descriptor < 0 || ::close(descriptor) == 0 || errno == EINTR || failed(KVL_SYSTEM, errno);
}

bool File::date(int64_t time_ns) {
    constexpr int64_t kSecond = 1'000'000'000;
    const timespec time = {static_cast<time_t>(time_ns / kSecond), static_cast<long>(time_ns % kSecond)};
    const timespec times[] = {time, time};
    return futimens(descriptor_, times) == 0 || failed(KVL_SYSTEM, errno);
}

}  // namespace kvl
