/* Failures that a test asks for, by the environment or by a file that is read again whenever it changes.
 *
 * CARD_FAIL_ALLOC and CARD_LOST_AT are `5`, the fifth of the process; `5+`, all from the fifth on; `+5`, the fifth from when the file
 * said so; or `*`, none. The file has lines NAME=VALUE and outweighs the environment. */
#include "fail.hpp"

#include <sys/stat.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "count.hpp"
#include "state.hpp"

namespace card {
struct Wish {
    uint64_t at = 0;
    bool onwards = false;

    bool granted(uint64_t count) const { return at && (onwards ? count >= at : count == at); }
};

static Wish failing, losing;
static uint64_t allocations;

static Wish parse(const char* text, uint64_t now) {
    Wish wish;
    if (!text || !*text || *text == '*') return wish;
    char* end = nullptr;
    wish.at = strtoull(text, &end, 10) + (*text == '+' ? now : 0);
    wish.onwards = *end == '+';
    return wish;
}

static void read_file() {
    static struct timespec read_at;
    static off_t size = -1;
    struct stat status;
    if (settings().fail_file.empty() || stat(settings().fail_file.c_str(), &status) != 0) return;
    bool same = status.st_mtim.tv_sec == read_at.tv_sec && status.st_mtim.tv_nsec == read_at.tv_nsec && status.st_size == size;
    if (same) return;
    read_at = status.st_mtim;
    size = status.st_size;
    FILE* file = fopen(settings().fail_file.c_str(), "re");
    if (!file) return;
    char line[128];
    failing = losing = Wish();
    while (fgets(line, sizeof line, file)) {
        line[strcspn(line, "\r\n")] = 0;
        if (!strncmp(line, "CARD_FAIL_ALLOC=", 16)) failing = parse(line + 16, allocations);
        if (!strncmp(line, "CARD_LOST_AT=", 13)) losing = parse(line + 13, counts.operations);
    }
    fclose(file);
}

static void read_wishes() {
    static bool first = true;
    if (first) {
        failing = parse(getenv("CARD_FAIL_ALLOC"), 0);
        losing = parse(getenv("CARD_LOST_AT"), 0);
        first = false;
    }
    read_file();
}

bool allocation_must_fail() {
    read_wishes();
    return failing.granted(++allocations);
}

bool device_is_lost() {
    read_wishes();
    return losing.granted(++counts.operations);
}
}  // namespace card
