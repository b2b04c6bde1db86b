// Enough of CUDA to run the kernels beside this file on a CPU, as they are written: threads of a block are coroutines
// that change places at __syncthreads. The order in which they run between two barriers can be reversed, so that a
// missing barrier shows as a difference between two runs.
#pragma once
#include <cmath>
#include <cstring>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <algorithm>
#include <utility>
#include <vector>
#include <csetjmp>
#include <ucontext.h>

#define __global__
#define __device__
using std::min;

struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct Index { unsigned x, y, z; };
static Index threadIdx, blockIdx, blockDim, gridDim;
static float *emulated_shared_memory;
#define SHARED_MEMORY(name) float *name = emulated_shared_memory;

namespace emulated {
// A context begins a coroutine; after that, jumps switch without asking the system.
struct Fiber { ucontext_t context; jmp_buf at_barrier; std::vector<char> stack; bool begun, done; unsigned at; };
static std::vector<Fiber> fibers;
static jmp_buf scheduler;
static unsigned current;
static bool reversed;
static std::vector<float> exchange;
static void (*entry)(void **);
static void **arguments;

static void start() {
    entry(arguments);
    fibers[current].done = true;
    _longjmp(scheduler, 1);
}

static void resume(Fiber &fiber) {
    if (fiber.done || _setjmp(scheduler)) return;
    if (fiber.begun) _longjmp(fiber.at_barrier, 1);
    fiber.begun = true;
    setcontext(&fiber.context);
}

// Lets every thread run to its next barrier, again and again. Threads that part ways at a barrier are a mistake.
static bool block(unsigned threads) {
    fibers.resize(threads);
    exchange.assign(threads, 0.0f);
    for (auto &fiber : fibers) {
        if (fiber.stack.empty()) fiber.stack.resize(64 << 10);
        fiber.begun = fiber.done = false;
        fiber.at = 0;
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.data();
        fiber.context.uc_stack.ss_size = fiber.stack.size();
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, start, 0);
    }
    for (;;) {
        for (unsigned i = 0; i < threads; i++) {
            current = reversed ? threads - 1 - i : i;
            threadIdx = {current, 0, 0};
            resume(fibers[current]);
        }
        unsigned done = 0;
        for (auto &fiber : fibers) done += fiber.done;
        if (done == threads) return true;
        for (auto &fiber : fibers)
            if (fiber.done ? done != threads : fiber.at != fibers[current].at) return false;
    }
}
} // namespace emulated

// `at` names the barrier: all threads must wait at the same one.
static inline void emulated_barrier(unsigned at) {
    unsigned me = emulated::current;
    emulated::fibers[me].at = at;
    if (!_setjmp(emulated::fibers[me].at_barrier)) _longjmp(emulated::scheduler, 1);
}
#define __syncthreads() emulated_barrier(__LINE__)

static inline float __shfl_xor_sync(unsigned, float x, int lanes) {
    unsigned me = emulated::current;
    emulated::exchange[me] = x;
    emulated_barrier(1u << 30);
    float other = emulated::exchange[me ^ (unsigned)lanes];
    emulated_barrier(1u << 31);
    return other;
}
static inline float __uint_as_float(unsigned bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
static inline unsigned __float_as_uint(float x) {
    unsigned bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

template <class... A, std::size_t... I>
static void emulated_call(void (*kernel)(A...), void **arguments, std::index_sequence<I...>) {
    kernel(*(A *)arguments[I]...);
}
template <class... A>
static void emulated_call(void (*kernel)(A...), void **arguments) {
    emulated_call(kernel, arguments, std::index_sequence_for<A...>());
}

// Runs a kernel over a grid; false when threads of a block parted ways at a barrier.
static bool emulated_launch(void (*entry)(void **), const unsigned *grid, unsigned threads, unsigned shared_floats, bool reversed, void **arguments) {
    // Shared memory holds whatever it held before, and a guard behind it catches what is written past its end.
    std::vector<float> memory(shared_floats + 64, NAN);
    emulated_shared_memory = memory.data();
    emulated::entry = entry;
    emulated::arguments = arguments;
    emulated::reversed = reversed;
    blockDim = {threads, 1, 1};
    gridDim = {grid[0], grid[1], grid[2]};
    for (unsigned z = 0; z < grid[2]; z++)
        for (unsigned y = 0; y < grid[1]; y++)
            for (unsigned x = 0; x < grid[0]; x++) {
                blockIdx = {x, y, z};
                std::fill(memory.begin(), memory.end(), NAN);
                if (!emulated::block(threads)) return false;
                for (unsigned i = shared_floats; i < memory.size(); i++)
                    if (!std::isnan(memory[i])) return false;
            }
    return true;
}
