// One file in an open folder.
#ifndef KVLINGUA_FILE_H_
#define KVLINGUA_FILE_H_

#include <cstdint>

#include "kvlingua.h"

namespace kvl {

// Closed at the end. What is opened is a private regular file: no link is followed, no FIFO's other end waited for.
class File {
  public:
    // flags: O_RDONLY or O_WRONLY. Afterwards `status` is KVL_DONE, KVL_SYSTEM, KVL_FOREIGN or KVL_OTHER_SIZE.
    File(int folder, const char* name, int flags, int64_t bytes);
    ~File();
    File(const File&) = delete;
    File& operator=(const File&) = delete;

    int32_t status() const { return status_; }
    int32_t error() const { return error_; }  // of KVL_SYSTEM: the errno

    // The file's bytes [from, to), to `into` or from `data`; true unless that changes the status.
    bool read(char* into, uint64_t from, uint64_t to);
    bool write(const char* data, uint64_t bytes);
    // Gives the file a time of change, in nanoseconds since the epoch.
    bool date(int64_t time_ns);
    // Closes it now: some file systems say only then that there was no room.
    bool close();

  private:
    bool failed(int32_t status, int32_t error);

    int descriptor_;
    int32_t status_ = KVL_DONE;
    int32_t error_ = 0;
};

}  // namespace kvl

#endif  // KVLINGUA_FILE_H_
