/* Dry runs: nothing is computed, and what the host reads is invented from what wrote it last. */
#include <cmath>
#include <cstring>
#include <limits>

#include "../include/card_small_floats.h"
#include "dry.hpp"

namespace card {
/* What is longer is weights, which no host code looks at to decide what to do. */
static const uint64_t REMEMBERED_MAX = 4096;

void note_origin(uint64_t address, const Origin& origin) {
    Allocation* allocation = live_at(address);
    if (allocation) allocation->origin = origin;
}

void remember_copy(uint64_t address, const void* from, uint64_t bytes) {
    Allocation* allocation = live_at(address);
    if (!allocation) return;
    Origin& origin = allocation->origin;
    if (!origin.writer || strcmp(origin.writer, "host") != 0) origin = {"host", -1, "zero", nullptr, nullptr, {}};
    if (bytes > REMEMBERED_MAX) return;
    const unsigned char* first = static_cast<const unsigned char*>(from);
    origin.bytes[address - allocation->begin].assign(first, first + bytes);
}

void complain_of_table(const char* what) {
    if (settings().dry) refuse(what);
}

static bool ends_with(const std::string& text, const char* end) {
    size_t length = strlen(end);
    return text.size() >= length && text.compare(text.size() - length, length, end) == 0;
}

/* What a kernel of candle writes, by its name: `cast_f32_bf16`, `fast_argmax_f32`, `ge_f32`. */
static const char* type_by_name(const std::string& name) {
    for (const char* sorted : {"argmax", "argmin", "asort"}) {
        if (name.find(sorted) != std::string::npos) return "u32";
    }
    for (const char* compares : {"eq_", "ne_", "lt_", "le_", "gt_", "ge_"}) {
        if (name.compare(0, 3, compares) == 0) return "u8";
    }
    for (const char* type : {"bf16", "f16", "f32", "f64", "u32", "u8", "i64"}) {
        if (ends_with(name, (std::string("_") + type).c_str())) return type;
    }
    return nullptr;
}

static const char* type_of(const Origin& origin) {
    if (origin.type || !origin.entry) return origin.type ? origin.type : "zero";
    if (const char* type = type_by_name(origin.entry->name)) return type;
    const CardParameter& parameter = origin.entry->parameters[origin.parameter];
    if (parameter.kind == CARD_FLOATS) {
        int32_t code;
        memcpy(&code, origin.arguments.get() + parameter.offset + 16, 4);
        return code == 0 ? "f32" : code == 1 ? "bf16" : "f16";
    }
    return parameter.element == 8 ? "f64" : parameter.element == 4 ? "f32" : parameter.element == 2 ? "bf16" : "u8";
}

/* Positive and finite; small and not all the same, but 1 where there is one alone: sums of squares are, and a gradient whose norm
 * is beyond the limit is what a run has at first. */
static double any_float(uint64_t i, uint64_t count) { return count == 1 ? 1 : 0.001 * static_cast<double>(1 + i % 499); }

static uint64_t width_of(const std::string& type) {
    if (type == "f64" || type == "i64") return 8;
    return type == "f32" || type == "u32" ? 4 : type == "u8" || type == "zero" ? 1 : 2;
}

static void write_number(const std::string& type, uint64_t i, double value, unsigned char* to) {
    auto put = [to](auto number) { memcpy(to, &number, sizeof number); };
    if (type == "f64") put(value);
    else if (type == "f32") put(static_cast<float>(value));
    else if (type == "bf16") put(card::Brain16::of(static_cast<float>(value)));
    else if (type == "f16") put(card::Binary16::of(static_cast<float>(value)));
    else if (type == "u32") put(static_cast<uint32_t>(i));
    else if (type == "i64") put(static_cast<int64_t>(i));
    else put(static_cast<uint8_t>(type == "u8" ? i % 2 : 0));
}

void invent(Allocation* allocation, uint64_t offset, void* to, uint64_t bytes) {
    const Origin& origin = allocation->origin;
    unsigned char* out = static_cast<unsigned char*>(to);
    Invention invention = origin.entry ? find_invention(origin) : Invention();
    std::string type = invention.number ? invention.type : type_of(origin);
    uint64_t width = width_of(type);
    if (offset % width) return void(memset(to, 0, bytes));
    for (uint64_t done = 0; done + width <= bytes; done += width) {
        uint64_t i = (offset + done) / width;
        double value = invention.number ? invention.number(i) : any_float(i, allocation->size / width);
        write_number(type, invention.number ? static_cast<uint64_t>(value) : i, value, out + done);
    }
    /* Over it what the host once put there. */
    for (const auto& [at, remembered] : origin.bytes) {
        uint64_t from = std::max(at, offset), end = std::min<uint64_t>(at + remembered.size(), offset + bytes);
        if (from < end) memcpy(out + (from - offset), remembered.data() + (from - at), end - from);
    }
}
}  // namespace card
