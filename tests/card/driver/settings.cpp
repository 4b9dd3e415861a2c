/* Reads what the environment sets, once. */
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>

#include "state.hpp"

namespace card {
static const uint64_t MIB = 1 << 20;

static const char* variable(const char* name) {
    const char* value = getenv(name);
    return value && *value ? value : nullptr;
}

static uint64_t number(const char* name, uint64_t otherwise) {
    const char* value = variable(name);
    if (!value) return otherwise;
    char* end = nullptr;
    unsigned long long parsed = strtoull(value, &end, 10);
    if (*end) {
        fprintf(stderr, "card: %s=%s is not a number\n", name, value);
        exit(2);
    }
    return parsed;
}

static Settings read_settings() {
    Settings s;
    s.dir = variable("CARD_DIR") ? variable("CARD_DIR") : "/dev/shm/card-" + std::to_string(getuid());
    mkdir(s.dir.c_str(), 0700);
    s.cap_bytes = number("CARD_MIB", 24564) * MIB;
    s.context_bytes = number("CARD_CONTEXT_MIB", 396) * MIB;
    s.queue_bytes = number("CARD_QUEUE_MIB", 64) * MIB;
    s.quarantine_bytes = number("CARD_QUARANTINE_MIB", 64) * MIB;
    s.seed = number("CARD_SEED", 0);
    s.dry = number("CARD_DRY", 0) != 0;
    s.shadow = !s.dry && number("CARD_SHADOW", 1) != 0;
    s.races = number("CARD_RACES", 1) != 0;
    const char* refuse = variable("CARD_REFUSE");
    s.error_instead = refuse && !strcmp(refuse, "error");
    s.trace = variable("CARD_TRACE") ? variable("CARD_TRACE") : "";
    s.fail_file = variable("CARD_FAIL_FILE") ? variable("CARD_FAIL_FILE") : "";
    return s;
}

const Settings& settings() {
    static const Settings& read = *new Settings(read_settings());
    return read;
}

uint64_t random_below(uint64_t bound) {
    static uint64_t state = settings().seed * 0x9e3779b97f4a7c15ull + 0x853c49e6748fea9bull;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return bound ? state % bound : 0;
}
}  // namespace card
