// Chunks on their way through shared memory: producer warps load and prepare them, consumer warps use them, DEPTH of them at a
// time.
#pragma once
#include "fla/cluster.cuh"

namespace fla {

// BARRIERS: where they begin in the block's dynamic shared memory. CLUSTER blocks, one or two, may write to one another's chunks.
template <int DEPTH, int PRODUCER_THREADS, int CONSUMER_THREADS, int BARRIERS, int CLUSTER = 1> struct ChunkPipeline {
    typedef Cluster<CLUSTER> Blocks;
    static constexpr int THREADS = PRODUCER_THREADS + CONSUMER_THREADS;
    static constexpr int FULL = BARRIERS, EMPTY = FULL + DEPTH * Mbarrier::BYTES, END = EMPTY + DEPTH * Mbarrier::BYTES;
    static_assert(BARRIERS % Mbarrier::BYTES == 0);
    static constexpr int PRODUCING = 1, CONSUMING = 2; // named barriers of each kind of warp

    static __device__ __forceinline__ void sync_producers() { barrier_wait(PRODUCING, PRODUCER_THREADS); }
    static __device__ __forceinline__ bool any_producer(bool flag) { return barrier_any(PRODUCING, PRODUCER_THREADS, flag); }
    static __device__ __forceinline__ void sync_consumers() { barrier_wait(CONSUMING, CONSUMER_THREADS); }
    // A group of consumers alone, the first or the second one.
    static __device__ __forceinline__ void sync_group(int group, int threads) { barrier_wait(CONSUMING + 1 + group, threads); }

    // A thread's registers at the launch of a kernel for so many BLOCKS on a multiprocessor: whole eights.
    template <int BLOCKS> static constexpr int registers() {
        constexpr int SHARE = 65536 / BLOCKS / THREADS / 8 * 8;
        return SHARE < 256 ? SHARE : 256;
    }
    static constexpr bool is_share(int registers) { return registers % 8 == 0 && registers >= 24 && registers <= 256; }

    // Gives each warp its part of the block's work, with so many registers (see set_registers; 0 leaves them as they are). The
    // kernel's launch bounds are THREADS and BLOCKS.
    template <int OF_PRODUCERS, int OF_CONSUMERS, int BLOCKS = 1, class Produce, class Consume>
    static __device__ __forceinline__ void run(Produce produce, Consume consume) {
        constexpr int SHARE = registers<BLOCKS>(), PRODUCING_SHARE = OF_PRODUCERS == 0 ? SHARE : OF_PRODUCERS,
                      CONSUMING_SHARE = OF_CONSUMERS == 0 ? SHARE : OF_CONSUMERS;
        static_assert(is_share(PRODUCING_SHARE) && is_share(CONSUMING_SHARE), "registers: a multiple of 8 from 24 to 256");
        static_assert(PRODUCING_SHARE * PRODUCER_THREADS + CONSUMING_SHARE * CONSUMER_THREADS <= SHARE * THREADS,
                      "more registers than the block has: warps would wait for them forever");
        if (threadIdx.x < DEPTH) {
            full(threadIdx.x).init(PRODUCER_THREADS);
            empty(threadIdx.x).init(CONSUMER_THREADS + (CLUSTER - 1) * CONSUMER_THREADS / 32);
        }
        __syncthreads();
        meet();
        if (threadIdx.x < PRODUCER_THREADS) {
            set_registers<OF_PRODUCERS, SHARE>();
            produce();
        } else {
            set_registers<OF_CONSUMERS, SHARE>();
            consume();
        }
        meet(); // the other block's last arrivals come to this one's memory
    }

    // The producers' part: load(n) begins to copy chunk `n`, and does nothing for one that does not exist; prepare(n) works on it
    // once it is there; pass(n, barrier) arrives for this thread, and begins to copy to the other block.
    template <class Load, class Prepare> static __device__ __forceinline__ void produce(int chunks, Load load, Prepare prepare) {
        // Each thread arrives: compute-sanitizer does not see what __syncwarp orders.
        produce(chunks, load, prepare, [](int, Mbarrier full) { full.arrive(); });
    }
    template <class Load, class Prepare, class Pass>
    static __device__ __forceinline__ void produce(int chunks, Load load, Prepare prepare, Pass pass) {
        for (int n = 0; n < DEPTH - 1; n++) {
            load(n);
            copy_async_commit();
        }
        for (int n = 0; n < chunks; n++) {
            copy_async_wait<DEPTH - 2>();
            sync_producers();
            prepare(n);
            pass(n, full(n));
            int next = n + DEPTH - 1;
            if (n > 0 && next < chunks) empty(n - 1).wait((n - 1) / DEPTH); // has the memory of `next`
            load(next);
            copy_async_commit();
        }
    }

    // The consumers' part of chunk `n`: wait for it, and give its memory back.
    static __device__ __forceinline__ void wait(int n) { full(n).wait(n / DEPTH); }
    static __device__ __forceinline__ void release(int n) { empty(n).arrive(); }
    // The same in the other block.
    static __device__ __forceinline__ void release_in(int rank, int n) { Blocks::arrive_warp(rank, empty(n)); }

private:
    static __device__ __forceinline__ void meet() { Blocks::arrive(), Blocks::wait(); }
    // Of chunk n's memory: phase n / DEPTH ends when all producers are done with the chunk, all consumers.
    static __device__ __forceinline__ Mbarrier full(int n) { return {shared_memory() + FULL + n % DEPTH * Mbarrier::BYTES}; }
    static __device__ __forceinline__ Mbarrier empty(int n) { return {shared_memory() + EMPTY + n % DEPTH * Mbarrier::BYTES}; }
};

} // namespace fla
