// The implementation of emulator.h. Threads of a block are coroutines that switch at barriers and
// shuffles, in a random order that is new for every block; blocks also run in a random order. A
// barrier that some thread never reaches, which would hang a GPU, is reported.
#include "emulator.h"

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <map>
#include <memory>
#include <random>
#include <vector>

Index threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {
namespace {

constexpr int WARP_SIZE = 32;
constexpr size_t STACK = 64 * 1024;

struct Barrier {
    unsigned phase = 0;
    int arrived = 0;
    uint64_t slots[2][WARP_SIZE] = {};
};

// It is started by a context and then switched by jumps: switching contexts takes two system calls.
struct Thread {
    ucontext_t context;
    jmp_buf place;
    std::unique_ptr<char[]> stack{new char[STACK]};
    bool started = false, done = false;
    const Barrier* awaited = nullptr;  // it waits until this barrier's phase is no longer `phase`
    unsigned phase = 0;

    bool waits() const { return awaited && awaited->phase == phase; }
};

jmp_buf scheduler;
std::vector<Thread> threads;
std::map<std::pair<int, unsigned>, Barrier> warps;  // by warp and mask
Barrier whole_block;
int current = 0;
bool moved = false;  // something happened since the scheduler last looked
const char* failure = nullptr;
void (*body_of_all)(void**) = nullptr;
void** given_to_all = nullptr;

void yield() {
    if (!_setjmp(threads[current].place)) _longjmp(scheduler, 1);
}

// Runs it until it yields.
__attribute__((noinline)) void resume(Thread& thread) {
    if (_setjmp(scheduler)) return;
    if (thread.started) _longjmp(thread.place, 1);
    thread.started = true;
    setcontext(&thread.context);
}

void fail(const char* message) {
    failure = message;
    yield();
}

void entry() {
    for (;;) {
        body_of_all(given_to_all);
        threads[current].done = moved = true;
        yield();
    }
}

void start_threads(unsigned count) {
    threads = std::vector<Thread>(count);
    for (Thread& thread : threads) {
        getcontext(&thread.context);
        thread.context.uc_stack.ss_sp = thread.stack.get();
        thread.context.uc_stack.ss_size = STACK;
        thread.context.uc_link = nullptr;
        makecontext(&thread.context, entry, 0);
    }
}

void wait(Barrier& barrier, int expected) {
    if (++barrier.arrived == expected) {
        barrier.arrived = 0;
        barrier.phase++;
        moved = true;
        return;
    }
    threads[current].awaited = &barrier;
    threads[current].phase = barrier.phase;
    yield();
    threads[current].awaited = nullptr;
}

bool run_block(std::mt19937& random) {
    warps.clear();
    whole_block = Barrier();
    std::vector<int> order(threads.size());
    for (size_t t = 0; t < threads.size(); t++) {
        order[t] = static_cast<int>(t);
        threads[t].done = false;
        threads[t].awaited = nullptr;
    }
    std::shuffle(order.begin(), order.end(), random);
    for (bool left = true; left;) {
        left = moved = false;
        for (int t : order) {
            if (threads[t].done) continue;
            left = true;
            if (threads[t].waits()) continue;
            current = t;
            threadIdx = Index{static_cast<unsigned>(t), 0, 0};
            resume(threads[t]);
            if (failure) return false;
        }
        if (left && !moved) {
            failure = "threads wait at a barrier that others never reach";
            return false;
        }
    }
    return true;
}

}  // namespace

int lane() { return current % WARP_SIZE; }

void synchronise() { wait(whole_block, static_cast<int>(threads.size())); }

uint64_t exchange(unsigned mask, uint64_t bits, int from_lane) {
    if (!(mask >> lane() & 1) || !(mask >> from_lane & 1))
        fail("a shuffle with a lane outside its mask");
    Barrier& barrier = warps[{current / WARP_SIZE, mask}];
    uint64_t* slots = barrier.slots[barrier.phase & 1];
    slots[lane()] = bits;
    wait(barrier, __builtin_popcount(mask));
    return slots[from_lane];
}

const char* run(void (*body)(void**), void** given, unsigned x, unsigned y, unsigned num_threads,
                unsigned seed) {
    failure = nullptr;
    body_of_all = body;
    given_to_all = given;
    if (threads.size() != num_threads) start_threads(num_threads);
    gridDim = Index{x, y, 1};
    blockDim = Index{num_threads, 1, 1};
    std::mt19937 random(seed);
    std::vector<Index> blocks;
    for (unsigned j = 0; j < y; j++)
        for (unsigned i = 0; i < x; i++) blocks.push_back(Index{i, j, 0});
    std::shuffle(blocks.begin(), blocks.end(), random);
    for (const Index& block : blocks) {
        blockIdx = block;
        if (!run_block(random)) {
            threads.clear();  // they were interrupted by the failure
            return failure;
        }
    }
    return nullptr;
}

}  // namespace emulator
