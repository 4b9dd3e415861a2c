#include "tools.hpp"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <spawn.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <stdexcept>

extern char** environ;

namespace card {
std::string own_path() {
    Dl_info info;
    char path[PATH_MAX];
    if (!dladdr((void*)&own_path, &info) || !realpath(info.dli_fname, path)) {
        ssize_t len = readlink("/proc/self/exe", path, sizeof path - 1);
        if (len < 0) throw std::runtime_error("cannot tell where this toolkit lies");
        path[len] = 0;
    }
    return path;
}

std::string toolkit() {
    /* Two folders above. */
    std::string folder = own_path();
    for (int i = 0; i < 2; i++) folder.resize(folder.rfind('/'));
    return folder;
}

bool exists(const std::string& path) { return access(path.c_str(), R_OK) == 0; }

std::string read_file(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw std::runtime_error("cannot read " + path);
    return std::string(std::istreambuf_iterator<char>(file), {});
}

void write_file(const std::string& path, const std::string& bytes) {
    std::ofstream file(path, std::ios::binary);
    file << bytes;
    file.close();
    if (!file) throw std::runtime_error("cannot write " + path);
}

int run_program(const std::vector<std::string>& words, const std::string& log, std::string& said) {
    std::vector<char*> arguments;
    for (const std::string& word : words) arguments.push_back(const_cast<char*>(word.c_str()));
    arguments.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 1, log.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    posix_spawn_file_actions_adddup2(&actions, 1, 2);
    pid_t child;
    int failed = posix_spawnp(&child, arguments[0], &actions, nullptr, arguments.data(), environ);
    posix_spawn_file_actions_destroy(&actions);
    if (failed) {
        said += "cannot run " + words[0] + ": " + strerror(failed) + "; install a C++ compiler, or name one in CARD_CXX\n";
        return 127;
    }
    int status = 0;
    while (waitpid(child, &status, 0) < 0) {
        if (errno != EINTR) throw std::runtime_error("cannot wait for " + words[0]);
    }
    said += read_file(log);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

Scratch::Scratch() {
    const char* base = getenv("TMPDIR");
    path = std::string(base && *base ? base : "/tmp") + "/card-XXXXXX";
    if (!mkdtemp(&path[0])) throw std::runtime_error("cannot make a folder " + path);
}

Scratch::~Scratch() {
    for (const std::string& name : names) unlink((path + "/" + name).c_str());
    rmdir(path.c_str());
}

std::string Scratch::in(const std::string& name) {
    names.push_back(name);
    return path + "/" + name;
}

std::string to_base64(const std::string& bytes, size_t line, const char* before_line) {
    static const char ALPHABET[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    std::string out;
    for (size_t i = 0; i < bytes.size(); i += 3) {
        if (i / 3 * 4 % line == 0) out += (i ? "\n" : "") + std::string(before_line);
        unsigned word = 0;
        size_t have = bytes.size() - i < 3 ? bytes.size() - i : 3;
        for (size_t j = 0; j < 3; j++) word = word << 8 | (j < have ? (unsigned char)bytes[i + j] : 0u);
        for (size_t j = 0; j < 4; j++) out += j <= have ? ALPHABET[word >> (18 - 6 * j) & 63] : '=';
    }
    return out + "\n";
}
}  // namespace card
