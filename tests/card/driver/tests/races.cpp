/* Races in the card's memory among the blocks and threads of one launch. */
#include <cstring>

#include "card.hpp"

static CUresult launch_blocks(const char* name, unsigned blocks, unsigned threads, std::vector<void*> arguments) {
    return cuLaunchKernel(kernel(name), blocks, 1, 1, threads, 1, 1, 0, nullptr, arguments.data(), nullptr);
}

static void run(const char* name, unsigned blocks, unsigned threads, std::vector<void*> arguments) {
    OK(launch_blocks(name, blocks, threads, arguments));
    cuCtxSynchronize();
}

#define RACE(name, words) REFUSED(name, "race in the card's memory: it " words)

REFUSED(blocks_that_write_one_element, "thread 0 writes another value over what another block wrote, and blocks have no order: byte 0 of allocation 1") {
    open_card();
    CUdeviceptr to = unwritten(16, nullptr);
    run("all_write", 2, 32, {&to});
}

LEGAL(blocks_and_threads_that_write_one_value) {
    open_card();
    CUdeviceptr to = unwritten(16, nullptr);
    for (int i = 0; i < 2; i++) run("all_write_one", 3, 64, {&to});
    EXPECT(read_floats(to, 1, nullptr)[0] == 1);
}

REFUSED(threads_that_write_one_element, "writes another value over what") {
    open_card();
    CUdeviceptr to = unwritten(16, nullptr);
    run("threads_write_one", 1, 64, {&to});
}

LEGAL(one_block_writes_where_others_would) {
    open_card();
    CUdeviceptr to = unwritten(16, nullptr);
    run("all_write", 1, 32, {&to});
    run("all_write", 1, 32, {&to});
    EXPECT(read_floats(to, 1, nullptr)[0] == 0);
}

/* Whichever of two neighbours comes first. */
RACE(blocks_that_shift_in_place, "") {
    open_card();
    CUdeviceptr to = floats(512, 1, nullptr);
    long long count = 512;
    run("shift_in_place", 2, 256, {&to, &count});
}

LEGAL(a_block_that_shifts_in_place) {
    open_card();
    CUdeviceptr to = floats(256, 1, nullptr);
    long long count = 256;
    for (int i = 0; i < 3; i++) run("shift_in_place", 1, 256, {&to, &count});
    std::vector<float> got = read_floats(to, 256, nullptr);
    EXPECT(got[252] == 1 && got[253] == 0);
}

RACE(a_write_of_what_other_blocks_read, "") {
    open_card();
    CUdeviceptr to = floats(1, 1, nullptr), sums = unwritten(32, nullptr);
    run("read_by_all_and_written_by_one", 8, 32, {&to, &sums});
}

RACE(threads_without_a_barrier, "") {
    open_card();
    CUdeviceptr to = floats(128, 1, nullptr);
    int barrier = 0;
    run("reverse_in_place", 2, 64, {&to, &barrier});
}

LEGAL(threads_with_a_barrier) {
    open_card();
    CUdeviceptr to = floats(128, 1, nullptr);
    int barrier = 1;
    run("reverse_in_place", 2, 64, {&to, &barrier});
}

LEGAL(lanes_of_a_warp_that_wait_for_each_other) {
    open_card();
    CUdeviceptr to = unwritten(128 * 4, nullptr);
    run("exchange_in_warp", 1, 128, {&to});
}

LEGAL(the_last_block_sums_what_the_others_wrote) {
    open_card();
    CUdeviceptr to = unwritten(8 * 64 * 4, nullptr), sum = unwritten(4, nullptr), done = unwritten(4, nullptr);
    OK(cuMemsetD8Async(done, 0, 4, nullptr));
    run("add_up", 8, 64, {&to, &done, &sum});
    EXPECT(read_floats(sum, 1, nullptr)[0] == 512);
}

/* No races are looked for in an allocation of that size, and the number in it orders the blocks all the same. */
LEGAL(the_last_block_counts_in_a_large_allocation) {
    open_card();
    CUdeviceptr to = unwritten(8 * 64 * 4, nullptr), sum = unwritten(4, nullptr), done = unwritten(65 << 20, nullptr);
    OK(cuMemsetD8Async(done, 0, 4, nullptr));
    run("add_up", 8, 64, {&to, &done, &sum});
    EXPECT(read_floats(sum, 1, nullptr)[0] == 512);
}

LEGAL(a_lane_writes_what_its_warp_has_read) {
    open_card();
    CUdeviceptr to = floats(1, 1, nullptr), sums = unwritten(128, nullptr);
    run("warp_leader", 1, 32, {&to, &sums});
    EXPECT(read_floats(to, 1, nullptr)[0] == 2);
}

RACE(lanes_that_take_a_shuffle_for_a_barrier, "") {
    open_card();
    CUdeviceptr to = floats(32, 1, nullptr);
    run("swap_by_shuffle", 1, 32, {&to});
}

REFUSED(blocks_whose_wide_copies_differ_at_their_end, "writes another value over what another block wrote") {
    open_card();
    std::vector<float> values(64, 1);
    values[60] = 9;
    CUdeviceptr to = unwritten(128, nullptr), from = unwritten(256, nullptr);
    OK(cuMemcpyHtoDAsync_v2(from, values.data(), 256, nullptr));
    int bytes = 128;
    run("copy_wide", 2, 1, {&to, &from, &bytes});
}

static void sum_too_soon() {
    open_card();
    CUdeviceptr to = floats(8 * 64, 0, nullptr), sum = unwritten(4, nullptr), done = unwritten(4, nullptr);
    OK(cuMemsetD8Async(done, 0, 4, nullptr));
    run("add_up_too_soon", 8, 64, {&to, &done, &sum});
}
RACE(the_block_of_the_last_number_sums_too_soon, "") { sum_too_soon(); }
LEGAL(races_are_let_pass_where_that_is_asked_for, {"CARD_RACES", "0"}) { sum_too_soon(); }

template <class T> static void threes(const char* name, unsigned apart) {
    CUdeviceptr to = unwritten(64, nullptr);
    run(name, 5, 32, {&to, &apart});
    T got[15];
    OK(cuMemcpyDtoHAsync_v2(got, to, sizeof got, nullptr));
    for (unsigned i = 0; i < 15; i++) EXPECT(got[i] == i + 1);
}

LEGAL(blocks_whose_elements_share_a_word) {
    open_card();
    threes<unsigned char>("threes_of_bytes", 3);
    threes<unsigned short>("threes_of_halves", 3);
}
REFUSED(blocks_whose_bytes_overlap, "writes another value over what another block wrote") {
    open_card();
    threes<unsigned char>("threes_of_bytes", 2);
}
REFUSED(blocks_whose_halves_overlap, "writes another value over what another block wrote") {
    open_card();
    threes<unsigned short>("threes_of_halves", 2);
}

struct alignas(16) Record {
    CUdeviceptr at;
    long long length;
    int dtype;
};

struct Records {
    CUdeviceptr at;
    long long length;
};
static Records put_table(const std::vector<Record>& records) {
    Records table{unwritten(records.size() * sizeof(Record), nullptr), static_cast<long long>(records.size())};
    OK(cuMemcpyHtoDAsync_v2(table.at, records.data(), records.size() * sizeof(Record), nullptr));
    return table;
}

static void run_on_table(const char* name, std::vector<Record> records) {
    Records table = put_table(records);
    run(name, records.size(), 32, {&table});
}

LEGAL(buffers_of_a_table_are_written) {
    open_card();
    CUdeviceptr one = floats(5, 1, nullptr), other = floats(100, 2, nullptr);
    run_on_table("double_many", {{one, 5, 0}, {other + 40, 90, 0}, {0, 0, 0}});
    EXPECT(read_floats(one, 5, nullptr)[4] == 2);
    std::vector<float> got = read_floats(other, 100, nullptr);
    EXPECT(got[9] == 2 && got[10] == 4 && got[99] == 4);
}

REFUSED(a_buffer_of_a_table_beyond_its_allocation, "double_many on stream 0: record 1 of argument 0: 6 elements of 4 bytes from byte 0 of allocation 1, which has 20") {
    open_card();
    CUdeviceptr one = floats(5, 1, nullptr);
    run_on_table("double_many", {{one, 5, 0}, {one, 6, 0}});
}

REFUSED(a_buffer_of_a_table_that_was_freed, "record 0 of argument 0: 0x") {
    open_card();
    CUdeviceptr one = floats(5, 1, nullptr);
    OK(cuMemFreeAsync(one, nullptr));
    run_on_table("double_many", {{one, 5, 0}});
}

REFUSED(blocks_at_one_buffer_of_a_table, "race in the card's memory") {
    open_card();
    run_on_table("join_many", {{floats(5, 1, nullptr), 5, 0}, {floats(6, 1, nullptr), 6, 0}});
}

REFUSED(a_write_through_a_pointer_to_const, "write_through_const on stream 0 writes bytes 0 to 128 of allocation 1, which no parameter that it is known to write has") {
    open_card();
    CUdeviceptr from = floats(32, 1, nullptr);
    run("write_through_const", 1, 32, {&from});
}

REFUSED(a_read_beyond_a_record_of_a_table, "read_past_row on stream 0 reads bytes 0 to 128 of allocation 1, and its parameters have bytes 0 to 64 of it") {
    open_card();
    CUdeviceptr from = floats(64, 1, nullptr), to = unwritten(128, nullptr);
    Records table = put_table({{from, 16, 0}});
    run("read_past_row", 1, 32, {&table, &to});
}
