/* The card's memory among the processes that share it: a file that all map, in which each has a line. What a process held that
 * ended without giving it back, by SIGKILL for one, is free again at the next look. */
#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "account.hpp"
#include "state.hpp"

namespace card {
static const uint64_t MAGIC = 0x3130647261632d31ull;
static const unsigned PROCESSES_MAX = 256;

struct Process {
    int32_t pid;
    uint64_t started;
    uint64_t bytes, peak_bytes;
};

struct Shared {
    uint64_t magic, total_bytes, used_bytes, peak_bytes;
    Process processes[PROCESSES_MAX];
};

static Shared* shared;
static int file = -1;

/* The 22nd field of /proc/PID/stat; 0 where there is no such process. A number is given to another process one day, a number
 * with a start is not. */
static uint64_t start_of(int pid) {
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    int stat = open(path, O_RDONLY | O_CLOEXEC);
    if (stat < 0) return 0;
    ssize_t length = read(stat, text, sizeof text - 1);
    close(stat);
    if (length <= 0) return 0;
    text[length] = 0;
    const char* at = strrchr(text, ')');
    if (!at || at[2] == 'Z' || at[2] == 'X') return 0;
    for (int field = 2; at && field < 22; field++) at = strchr(at + 1, ' ');
    return at ? strtoull(at, nullptr, 10) : 0;
}

static void forget_the_dead() {
    for (Process& process : shared->processes) {
        if (process.pid == 0 || start_of(process.pid) == process.started) continue;
        shared->used_bytes -= process.bytes;
        process = {};
    }
}

static void map_card() {
    std::string path = settings().dir + "/card";
    file = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    void* mapped = MAP_FAILED;
    if (file >= 0 && flock(file, LOCK_EX) == 0 && ftruncate(file, sizeof(Shared)) == 0) {
        mapped = mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    }
    if (mapped == MAP_FAILED) {
        fprintf(stderr, "card: %s: %s\n", path.c_str(), strerror(errno));
        exit(2);
    }
    shared = static_cast<Shared*>(mapped);
    if (shared->magic != MAGIC) {
        memset(shared, 0, sizeof *shared);
        shared->magic = MAGIC;
    }
    forget_the_dead();
    bool empty = true;
    for (const Process& process : shared->processes) empty = empty && process.pid == 0;
    /* The first process says how large the card is; those that join it have the same. */
    if (empty || shared->total_bytes == 0) shared->total_bytes = settings().cap_bytes;
    flock(file, LOCK_UN);
}

struct CardLocked {
    CardLocked() {
        if (!shared) map_card();
        flock(file, LOCK_EX);
    }
    ~CardLocked() { flock(file, LOCK_UN); }
};

static Process* mine() {
    static Process* found;
    if (found && found->pid == getpid()) return found;
    int pid = getpid();
    for (Process& process : shared->processes) {
        if (process.pid != 0) continue;
        process = {pid, start_of(pid), 0, 0};
        return found = &process;
    }
    fprintf(stderr, "card: more than %u processes use %s\n", PROCESSES_MAX, settings().dir.c_str());
    exit(2);
}

bool take_from_card(uint64_t bytes) {
    CardLocked locked;
    if (bytes > shared->total_bytes - shared->used_bytes) forget_the_dead();
    if (bytes > shared->total_bytes - shared->used_bytes) return false;
    Process* process = mine();
    shared->used_bytes += bytes;
    process->bytes += bytes;
    if (process->bytes > process->peak_bytes) process->peak_bytes = process->bytes;
    if (shared->used_bytes > shared->peak_bytes) shared->peak_bytes = shared->used_bytes;
    return true;
}

void give_to_card(uint64_t bytes) {
    CardLocked locked;
    Process* process = mine();
    if (bytes > process->bytes) bytes = process->bytes;
    process->bytes -= bytes;
    shared->used_bytes -= bytes;
}

CardMemory memory_of_card() {
    CardLocked locked;
    forget_the_dead();
    return {shared->total_bytes - shared->used_bytes, shared->total_bytes, shared->peak_bytes, mine()->peak_bytes};
}

/* An orderly end, without waiting for the next process to look. */
__attribute__((destructor)) static void leave_card() {
    if (!shared) return;
    flock(file, LOCK_EX);
    int pid = getpid();
    for (Process& process : shared->processes) {
        if (process.pid != pid) continue;
        shared->used_bytes -= process.bytes;
        process = {};
    }
    flock(file, LOCK_UN);
}
}  // namespace card
