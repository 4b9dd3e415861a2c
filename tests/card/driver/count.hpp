/* Counts of what decides speed and memory, and a line for each call that counts. */
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace card {
struct Operation;

struct Traffic {
    uint64_t count = 0, bytes = 0;
};

struct Counts {
    std::map<std::string, uint64_t> launches;
    uint64_t launch_count = 0;
    /* Launches, products and fillings with random numbers: at each of them a device can be lost. */
    uint64_t operations = 0;
    Traffic host_to_device, device_to_host, device_to_device, fills;
    /* Why the host waited: "context", "stream", "event", "copy", "free". */
    std::map<std::string, uint64_t> synchronizations;
    uint64_t allocations = 0, frees = 0, failed_allocations = 0;
    uint64_t gemms = 0, gemm_flop = 0, gemm_bytes = 0, misaligned_gemms = 0;
    uint64_t random_numbers = 0, modules = 0, events = 0;
    uint64_t live_bytes = 0, live_peak_bytes = 0, reserved_bytes = 0, reserved_peak_bytes = 0, context_bytes = 0;
    std::vector<std::string> refusals;
};
extern Counts& counts;

void count_allocation(uint64_t bytes);
void count_free(uint64_t bytes);
void count_refusal(const char* what);
/* After the pools took from the card or gave to it. */
void count_reserved();

/* Writes counts-PID.json. */
void write_counts();
/* From now on, also when the process ends. */
void count_until_exit();
/* As that, when a second has passed. */
void write_counts_sometimes();

/* A line of CARD_TRACE; `more` is further JSON, beginning with a comma, or "". */
void trace(const char* kind, const char* name, uint64_t bytes, unsigned stream, const std::string& more = "");
/* As `more`: where the allocations begin that the operation writes. */
std::string list_writes(const Operation& operation);
void write_trace();
bool tracing();
}  // namespace card
