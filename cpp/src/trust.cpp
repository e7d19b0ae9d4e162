#include "trust.h"

#include "error.h"
#include "sha256.h"

#include <fcntl.h>
#include <pwd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <optional>

namespace libris {
namespace fs = std::filesystem;

namespace {

constexpr const char *kVariable = "RIS_PLAN_KEY";
constexpr const char *kName = "ris-runtime";
constexpr mode_t kOthersWrite = S_IWGRP | S_IWOTH;
constexpr mode_t kOthersAll = S_IRWXG | S_IRWXO;

// An environment variable, empty where it is not set.
std::string variable(const char *name) {
    const char *const value = std::getenv(name);
    return value != nullptr ? value : "";
}

// The user's home; nothing where the system knows of none. An empty one is "/", as in Python.
std::optional<std::string> home_folder() {
    if (const char *const home = std::getenv("HOME")) return home;
    passwd found{}, *entry = nullptr;
    std::vector<char> room(1 << 14);
    if (getpwuid_r(getuid(), &found, room.data(), room.size(), &entry) != 0) entry = nullptr;
    if (entry == nullptr || entry->pw_dir == nullptr) return std::nullopt;
    return entry->pw_dir;
}

// The system's temporary folder, as Python's tempfile finds it; empty where none can be written.
std::string temporary_folder() {
    for (const char *name : {"TMPDIR", "TEMP", "TMP"}) {
        const std::string folder = variable(name);
        if (!folder.empty() && access(folder.c_str(), W_OK | X_OK) == 0) return folder;
    }
    for (const char *folder : {"/tmp", "/var/tmp", "/usr/tmp"}) {
        if (access(folder, W_OK | X_OK) == 0) return folder;
    }
    return "";
}

bool is_private_or_absent(const std::string &folder) {
    struct stat about{};
    if (lstat(folder.c_str(), &about) != 0) return errno == ENOENT;
    return S_ISDIR(about.st_mode) && about.st_uid == getuid() && (about.st_mode & kOthersAll) == 0;
}

// An open file, closed at its end.
class File {
public:
    File(const std::string &path, int flags)
        : handle_(open(path.c_str(), flags | O_CLOEXEC, S_IRUSR | S_IWUSR)) {}
    File(const File &) = delete;
    File &operator=(const File &) = delete;
    ~File() {
        if (handle_ >= 0) close(handle_);
    }

    // At most one byte more than a key has; nothing where the file cannot be read.
    std::optional<std::string> read_key(struct stat &about) const {
        if (handle_ < 0 || fstat(handle_, &about) != 0) return std::nullopt;
        std::string bytes(kKeyBytes + 1, '\0');
        const ssize_t got = read(handle_, bytes.data(), bytes.size());
        if (got < 0) return std::nullopt;
        bytes.resize(static_cast<size_t>(got));
        return bytes;
    }

    bool write_all(const std::string &bytes) const {
        return handle_ >= 0 &&
               write(handle_, bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size()) &&
               fsync(handle_) == 0;
    }

private:
    int handle_;
};

// The key of this user alone in a file; nothing for any other file.
std::optional<std::string> own_key(const std::string &file) {
    struct stat about{};
    std::optional<std::string> key = File(file, O_RDONLY).read_key(about);
    const bool own = key && about.st_uid == geteuid() && (about.st_mode & kOthersAll) == 0;
    return own && key->size() == kKeyBytes ? key : std::nullopt;
}

// Makes a folder, and those above it, for this user alone.
bool make_folder(const fs::path &folder) {
    std::error_code error;
    if (folder.empty() || fs::is_directory(folder, error)) return true;
    return make_folder(folder.parent_path()) &&
           (mkdir(folder.c_str(), S_IRWXU) == 0 || errno == EEXIST);
}

void write_key(const std::string &folder, const std::string &file) {
    if (!make_folder(folder)) return;
    const std::string partial = folder + "/.key.partial-" + hex_of(random_bytes(8));
    if (File(partial, O_WRONLY | O_CREAT | O_EXCL).write_all(random_bytes(kKeyBytes))) {
        // a link fails where another process was faster, and on file systems that have none
        if (link(partial.c_str(), file.c_str()) != 0 && errno != EEXIST) {
            rename(partial.c_str(), file.c_str());
        }
    }
    unlink(partial.c_str());
}

std::string given_key(const std::string &file) {
    const std::string name = std::string(kVariable) + ": " + file;
    struct stat about{};
    const std::optional<std::string> key = File(file, O_RDONLY).read_key(about);
    if (!key) {
        throw Error(RIS_ERROR_ARGUMENT, name + " cannot be read (" + std::strerror(errno) + ")");
    }
    if (key->size() != kKeyBytes) {
        throw Error(RIS_ERROR_ARGUMENT, name + " is no key, which has " +
                                            std::to_string(kKeyBytes) +
                                            " bytes; make one with: head -c " +
                                            std::to_string(kKeyBytes) + " /dev/urandom > " + file);
    }
    if (!is_safe(file)) {
        throw Error(RIS_ERROR_ARGUMENT, name + " is no secret of this user: it belongs to another "
                                               "user, or others may write it");
    }
    return *key;
}

}  // namespace

std::vector<std::string> state_folders() {
    std::vector<std::string> folders;
    const std::string state = variable("XDG_STATE_HOME"), runtime = variable("XDG_RUNTIME_DIR");
    if (!state.empty()) folders.push_back(state + "/" + kName);
    const std::optional<std::string> home = state.empty() ? home_folder() : std::nullopt;
    if (home) folders.push_back(*home + "/.local/state/" + kName);
    if (!runtime.empty()) folders.push_back(runtime + "/" + kName);

    const std::string temporary = temporary_folder();
    if (temporary.empty()) return folders;
    const std::string own = temporary + "/" + kName + "-" + std::to_string(getuid());
    if (is_private_or_absent(own)) folders.push_back(own);
    return folders;
}

std::string user_key() {
    const std::string given = variable(kVariable);
    if (!given.empty()) return given_key(given);
    for (const std::string &folder : state_folders()) {
        const std::string file = folder + "/key";
        std::optional<std::string> key = own_key(file);
        if (key) return *key;
        if (access(file.c_str(), F_OK) != 0) write_key(folder, file);
        key = own_key(file);
        if (key) return *key;
    }
    static const std::string of_this_process = random_bytes(kKeyBytes);
    return of_this_process;
}

bool is_safe(const std::string &path) {
    struct stat about{};
    return stat(path.c_str(), &about) == 0 && (about.st_uid == geteuid() || about.st_uid == 0) &&
           (about.st_mode & kOthersWrite) == 0;
}

}  // namespace libris
