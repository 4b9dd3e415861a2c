/* Counts of what decides speed and memory: counts-PID.json in the card's directory, and CARD_TRACE. */
#include "count.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <set>

#include "account.hpp"
#include "pool.hpp"
#include "state.hpp"

namespace card {
/* Kept when the process ends, like all that the driver holds: other threads may still call it then. */
Counts& counts = *new Counts;

static double seconds() {
    static const auto start = std::chrono::steady_clock::now();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void count_allocation(uint64_t bytes) {
    counts.allocations++;
    counts.live_bytes += bytes;
    counts.live_peak_bytes = std::max(counts.live_peak_bytes, counts.live_bytes);
    count_reserved();
}

void count_free(uint64_t bytes) {
    counts.frees++;
    counts.live_bytes -= bytes;
}

void count_refusal(const char* what) { counts.refusals.push_back(what); }

void count_reserved() {
    counts.reserved_bytes = stream_pool().reserved + plain_pool().reserved + counts.context_bytes;
    counts.reserved_peak_bytes = std::max(counts.reserved_peak_bytes, counts.reserved_bytes);
}

static std::string quote(const std::string& text) {
    std::string out = "\"";
    for (unsigned char c : text) {
        char escaped[8];
        if (c == '"' || c == '\\') out += {'\\', static_cast<char>(c)};
        else if (c < 32) out += (snprintf(escaped, sizeof escaped, "\\u%04x", c), escaped);
        else out += static_cast<char>(c);
    }
    return out + "\"";
}

static std::string program() {
    char path[4096];
    ssize_t length = readlink("/proc/self/exe", path, sizeof path);
    std::string full(path, length > 0 ? length : 0);
    return full.substr(full.rfind('/') + 1);
}

static std::string object(const std::map<std::string, uint64_t>& numbers) {
    std::string out = "{";
    for (const auto& [name, number] : numbers) {
        out += (out.size() > 1 ? ", " : "") + quote(name) + ": " + std::to_string(number);
    }
    return out + "}";
}

static std::string object(const Traffic& traffic) { return object({{"count", traffic.count}, {"bytes", traffic.bytes}}); }

static std::string text_of_counts() {
    count_reserved();
    std::map<std::string, uint64_t> waits = counts.synchronizations;
    uint64_t all_waits = 0;
    for (const auto& wait : counts.synchronizations) all_waits += wait.second;
    waits["total"] = all_waits;
    std::string out = "{\n  \"pid\": " + std::to_string(getpid()) + ",\n  \"program\": " + quote(program());
    auto add = [&](const char* name, const std::string& value) { out += ",\n  " + quote(name) + ": " + value; };
    add("seconds", words("%.3f", seconds()));
    add("dry", settings().dry ? "true" : "false");
    add("operations", std::to_string(counts.operations));
    add("launches", std::to_string(counts.launch_count));
    std::map<std::string, uint64_t> launches;
    for (const auto& [kernel, count] : counts.launches) {
        if (count) launches[kernel] = count;
    }
    add("launches_by_kernel", object(launches));
    add("host_to_device", object(counts.host_to_device));
    add("device_to_host", object(counts.device_to_host));
    add("device_to_device", object(counts.device_to_device));
    add("fills", object(counts.fills));
    add("synchronizations", object(waits));
    add("allocations", object({{"count", counts.allocations}, {"frees", counts.frees}, {"failed", counts.failed_allocations}}));
    add("gemms", object({{"count", counts.gemms}, {"flop", counts.gemm_flop}, {"bytes", counts.gemm_bytes}, {"misaligned", counts.misaligned_gemms}}));
    add("random_numbers", std::to_string(counts.random_numbers));
    add("modules", std::to_string(counts.modules));
    add("events", std::to_string(counts.events));
    add("memory", object({{"live_bytes", counts.live_bytes},
                          {"live_peak_bytes", counts.live_peak_bytes},
                          {"reserved_bytes", counts.reserved_bytes},
                          {"reserved_peak_bytes", counts.reserved_peak_bytes},
                          {"context_bytes", counts.context_bytes}}));
    CardMemory card = memory_of_card();
    add("card", object({{"total_bytes", card.total_bytes},
                        {"used_bytes", card.total_bytes - card.free_bytes},
                        {"peak_bytes", card.peak_bytes},
                        {"process_peak_bytes", card.process_peak_bytes}}));
    std::string refusals;
    for (const std::string& refusal : counts.refusals) refusals += (refusals.empty() ? "" : ", ") + quote(refusal);
    add("refusals", "[" + refusals + "]");
    return out + "\n}\n";
}

static void write_all(int file, const std::string& text) {
    for (size_t done = 0; done < text.size();) {
        ssize_t wrote = write(file, text.data() + done, text.size() - done);
        if (wrote <= 0) return;
        done += wrote;
    }
}

static double written_at;

void write_counts() {
    written_at = seconds();
    std::string path = settings().dir + "/counts-" + std::to_string(getpid()) + ".json", fresh = path + ".tmp";
    int file = open(fresh.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (file < 0) return;
    write_all(file, text_of_counts());
    close(file);
    rename(fresh.c_str(), path.c_str());
}

void write_counts_sometimes() {
    if (seconds() - written_at < 1) return;
    write_counts();
    write_trace();
}

static std::string& traced = *new std::string;

bool tracing() { return !settings().trace.empty(); }

void trace(const char* kind, const char* name, uint64_t bytes, unsigned stream, const std::string& more) {
    if (!tracing()) return;
    typedef unsigned long long Long;
    /* Of the day, so that it can be laid beside a program's own log. */
    double time = std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
    Long reserved = stream_pool().reserved + plain_pool().reserved + counts.context_bytes;
    traced += words("{\"pid\": %d, \"time\": %.6f, \"kind\": \"%s\", \"name\": \"%s\", \"bytes\": %llu, \"stream\": %u, \"live\": %llu, \"reserved\": %llu",
                    getpid(), time, kind, name, (Long)bytes, stream, (Long)counts.live_bytes, reserved);
    traced += more + "}\n";
    if (traced.size() > 1 << 16) write_trace();
}

std::string list_writes(const Operation& operation) {
    if (!tracing()) return "";
    std::set<uint64_t> begins;
    for (const Range& range : operation.writes) {
        if (Allocation* allocation = live_at(range.at)) begins.insert(allocation->begin);
    }
    std::string out;
    for (uint64_t begin : begins) out += (out.empty() ? "" : ", ") + std::to_string(begin);
    return ", \"writes\": [" + out + "]";
}

void write_trace() {
    if (traced.empty()) return;
    static const int file = open(settings().trace.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (file >= 0) write_all(file, traced);
    traced.clear();
}

void count_until_exit() {
    atexit([] {
        write_counts();
        write_trace();
    });
}
}  // namespace card
