/* Each fault of faults.cu is found and named, in every order of threads; what is right is let pass, in every order. */
#include <fstream>

#include "check.hpp"

using namespace check;

static const uint64_t ORDERS = 24;

struct Fault {
    const char* name;
    const char* words;
};
static const Fault FAULTS[] = {
    {"missing_barrier", "race in shared memory|nobody wrote"},
    {"two_writers", "race in shared memory at byte"},
    {"written_after_read", "race in shared memory at byte"},
    {"byte_race", "race in shared memory|nobody wrote"},
    {"word_over_bytes", "race in shared memory|nobody wrote"},
    {"unwritten", "reads shared memory that nobody wrote, at byte 20"},
    {"unwritten_static", "reads shared memory that nobody wrote"},
    {"misaligned", "misaligned access: 16 bytes at address"},
    {"misaligned_shared", "misaligned access: 4 bytes at byte"},
    {"outside", "thread 63: no buffer holds these bytes"},
    {"outside_shared", "shared memory to byte 260, the launch has 256"},
    {"copied_outside", "no buffer holds these bytes"},
    {"null_pointer", "writes to address"},
    {"divergent", "takes part in an exchange of lanes 0000ffff"},
    {"different_exchanges", "meet in different exchanges"},
    {"lane_that_left", "takes a value from lane 3, which takes no part"},
    {"parted", "not all threads meet"},
    {"assertion", "assertion failed: blockDim.x == 7 ("},
    {"warps_out_of_order", "race in shared memory|nobody wrote"},
    {"shuffle_as_fence", "race in shared memory|nobody wrote"},
    {"ballot_as_fence", "race in shared memory|nobody wrote"},
    {"barriers_of_both_arms", "threads of a block wait at different barriers, in lines"},
    {"products_of_both_arms", "come to different instructions of tensor cores"},
    {"row_of_the_card", "which is not in shared memory"},
    {"row_of_a_stack", "which is not in shared memory"},
    {"row_that_nobody_wrote", "reads shared memory that nobody wrote, at byte 112"},
    {"constant_copy_outside", "no buffer holds these bytes"},
};

/* One of the words that `|` separates. */
static bool has_any(const std::string& text, const std::string& words) {
    for (size_t at = 0, end; at <= words.size(); at = end + 1) {
        end = std::min(words.find('|', at), words.size());
        if (text.find(words.substr(at, end - at)) != std::string::npos) return true;
    }
    return false;
}

static void find_faults(const Loaded& module) {
    unsigned* out = (unsigned*)fresh(64 * 4);
    for (const Fault& fault : FAULTS)
        for (uint64_t order = 0; order < ORDERS; order++) {
            std::string said = run(module, fault.name, {{1, 1, 1}, {64, 1, 1}, 256, order}, {&out});
            expect(has_any(said, fault.words), std::string(fault.name) + ": " + said);
            expect(said.find("block (0, 0, 0), thread ") == 0, std::string(fault.name) + " without a place: " + said);
        }
}

static void pass_what_is_right(const Loaded& module) {
    for (uint64_t order = 0; order < ORDERS; order++) {
        unsigned* out = (unsigned*)fresh(64 * 4);
        int count = 40;
        auto launch = [&](const char* name, std::vector<const void*> parameters) {
            std::string said = run(module, name, {{1, 1, 1}, {64, 1, 1}, 256, order}, parameters);
            expect(said.empty(), std::string(name) + ": " + said);
            return values(out, 64);
        };
        std::vector<unsigned> made = launch("left_early", {&out, &count});
        for (int i = 0; i < count; i++) expect(made[i] == unsigned(count - 1 - i), "left_early");
        made = launch("lanes_in_order", {&out});
        for (unsigned i = 0; i < 64; i++) expect(made[i] == (i ^ 31), "lanes_in_order");
        made = launch("neighbouring_bytes", {&out});
        for (unsigned i = 0; i < 64; i++) expect(made[i] == (i + 1) % 64, "neighbouring_bytes");
        launch("one_product_of_two_ways", {&out});
        expect_equal(launch("leader_of_a_warp", {&out}), std::vector<unsigned>(64, 1), "leader_of_a_warp");
        expect_equal(launch("set_at_once", {&out}), std::vector<unsigned>(64, 0x01010101), "set_at_once");
        expect_equal(launch("counted", {&out}), std::vector<unsigned>(64, 96), "counted");
        made = launch("half_a_warp", {&out});
        for (unsigned i = 0; i < 64; i++) {
            unsigned lane = i % 32, right = lane < 16 ? i ^ 8 : lane % 8 < 4 ? i + 4 : i;
            expect(made[i] == right, "half_a_warp");
        }
    }
}

/* Blocks and grids of three dimensions; every thread of every block runs once. */
static void count_threads(const Loaded& module) {
    struct {
        unsigned x, y, z;
    } given = {0, 0, 1000};
    for (uint64_t order = 0; order < ORDERS; order++) {
        unsigned* out = (unsigned*)fresh(3 * 5 * 7 * 64 * 4);
        std::string said = run(module, "solid", {{3, 5, 7}, {4, 8, 2}, 0, order}, {&out, &given});
        expect(said.empty(), "solid: " + said);
        std::vector<unsigned> made = values(out, 3 * 5 * 7 * 64);
        for (size_t i = 0; i < made.size(); i++) expect(made[i] == (i % 64 < 32 ? 496u : 1520u) + 1000, "solid");
    }
}

static void describe(const Loaded& module) {
    for (size_t i = 0; i < module.count; i++) {
        const CardEntry& entry = module.entries[i];
        expect(entry.max_threads == (strcmp(entry.name, "solid") ? 1024u : 64u), entry.name);
        expect(entry.parameters[0].kind == CARD_POINTER && entry.parameters[0].element == 4 && !entry.parameters[0].readonly, entry.name);
        if (strcmp(entry.name, "solid")) continue;
        expect(entry.parameters[1].offset == 8 && entry.parameters[1].size == 12, "solid's second parameter");
    }
    expect(module.shared_len > 0 && module.shared_len < 1024, "the static arrays and nothing else");
}

static void refuse_texts() {
    std::string log;
    compile("extern \"C\" __global__ void f(int* x) {\n    x[0] = y;\n}\n", &log);
    expect(log[0] == '6' && log.find("a.cu:2:") != std::string::npos, "an error with its place: " + log);
    compile("__global__ void f(int* x) { x[0] = 1; }", &log);
    expect(log.find("6 a.cu: error: the kernel f is not extern \"C\"") == 0, log);
}

static void refuse_instructions() {
    std::string log;
    compile("extern \"C\" __global__ void f(float* x) {\n    float y;\n    if (x)\n        asm volatile(\"ex2.approx.f32 %0, %1;\" : \"=f\"(y) : \"f\"(x[0]));\n}\n", &log);
    expect(log.find("6 a.cu: error: at a.cu:4: inline PTX \"ex2.approx.f32 %0, %1;\": the card in software runs none") == 0, log);
    compile("extern \"C\" __global__ void f(unsigned* x) { __asm__(\"{mov\" \".u32 %0, %%laneid;}\" : \"=r\"(*x)); }", &log);
    expect(log.find("at a.cu:1: inline PTX \"{mov\"\".u32 %0, %%laneid;}\"") != std::string::npos, log);
    compile("extern \"C\" __global__ void f(unsigned* x) {\n    asm(R\"(bar.sync 0;)\");\n}", &log);
    expect(log.find("at a.cu:2: inline PTX R\"(bar.sync 0;)\"") != std::string::npos, log);
    /* What looks like a line of a system's header, and is none. */
    compile("\n#pragma message \"3 hi\" 3\nextern \"C\" __global__ void f(float* x) { asm volatile(\"nop;\"); }", &log);
    expect(log.find("inline PTX \"nop;\"") != std::string::npos, log);
    compile("#pragma GCC system_header\nextern \"C\" __global__ void f(float* x) { asm volatile(\"nop;\"); }", &log);
    expect(log.find("inline PTX \"nop;\"") != std::string::npos, log);
    std::ofstream("/tmp/card-check.cuh") << "#pragma GCC system_header\ninline __device__ void wait() { asm volatile(\"nop;\"); }\n";
    compile("#include \"/tmp/card-check.cuh\"\nextern \"C\" __global__ void f(float* x) { wait(); }", &log);
    remove("/tmp/card-check.cuh");
    expect(log.find("card-check.cuh:2: inline PTX \"nop;\"") != std::string::npos, log);
    /* A name for the linker. */
    compile("extern \"C\" float root(float) __asm__(\"sqrtf\");\nextern \"C\" __global__ void f(float* x) { x[0] = root(x[0]); }", &log);
    expect(log[0] == '0', log);
}

int main(int, char** words) {
    Loaded module = compile_file(words[1]);
    describe(module);
    find_faults(module);
    pass_what_is_right(module);
    count_threads(module);
    refuse_texts();
    refuse_instructions();
    return report();
}
