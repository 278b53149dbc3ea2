// What Hopper's kernels of softmax attention's backward pass share: two groups of four warps compute, one thread loads, and for
// each group another one adds its part of dQ to the sums of all blocks, in turns.
#pragma once
#include "fla/attention_backward.cuh"
#include "fla/bulk.cuh"
#include "fla/tma.cuh"
#include "fla/turn.cuh"
#include "fla/warp_tile.cuh"
#include "fla/wgmma.cuh"

namespace fla {

struct AttentionHopperBackward {
    TensorMap q, k, v, grad_output; // boxes of a tile's rows
    AttentionBackward call;
};

constexpr int GROUP_THREADS = 128, CONSUMER_THREADS = 2 * GROUP_THREADS, THREADS = GROUP_THREADS + CONSUMER_THREADS;

constexpr int SHARE = 65536 / THREADS / 8 * 8; // of a thread in the registers

// Hides the scores of a tile of queries that are not seen; `query` and `key` are those of the thread's first one.
template <int BLOCKS, class Work>
__device__ __forceinline__ void hide(const Work& work, float (&scores)[BLOCKS][4], int tile, int query, int key) {
    if (work.all_seen(tile)) return;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        Range seeing = work.seeing(key + half * 8, query);
#pragma unroll
        for (int j = 0; j < BLOCKS; j++)
#pragma unroll
            for (int e = 0; e < 2; e++)
                if (!seeing.contains(j * 8 + e)) scores[j][half * 2 + e] = hidden();
    }
}

// The way of dQ: in every step each group leaves ROUNDS times 64 x COLUMNS numbers in shared memory, in as many tiles as there
// are SLOTS; its adding thread adds these to the sums of the group's part, in turns.
template <int COLUMNS, int ROUNDS_, int SLOTS> struct QuerySums {
    static constexpr int ROUNDS = ROUNDS_;
    typedef FloatTile<64, COLUMNS> Tile;
    static constexpr int PART = ROUNDS * 64 * COLUMNS; // numbers of a group in a step
    static constexpr int BYTES = 2 * SLOTS * Tile::BYTES, BARRIERS = 4 * SLOTS;

    u32 tiles, barriers;

    __device__ __forceinline__ void init() const {
        for (int group = 0; group < 2; group++)
            for (int i = 0; i < SLOTS; i++) {
                summed(group, i).init(GROUP_THREADS);
                added(group, i).init(1);
            }
    }
    // By a group, in each round of step `n`; a warp's rows begin at `row` of 64.
    __device__ __forceinline__ void store(int group, int n, int round, const float (&dq)[ROUNDS * COLUMNS / 8][4], int row,
                                          int lane) const {
        int i = n * ROUNDS + round;
        Tile tile(tiles + place(group, i) * Tile::BYTES);
        if (i >= SLOTS) added(group, i).wait(i / SLOTS - 1);
#pragma unroll
        for (int j = 0; j < COLUMNS / 8; j++)
#pragma unroll
            for (int half = 0; half < 2; half++)
                shared_store(tile.at(row + half * 8 + lane / 4, j * 8 + lane % 4 * 2),
                             make_float2(dq[round * (COLUMNS / 8) + j][2 * half], dq[round * (COLUMNS / 8) + j][2 * half + 1]));
        fence_for_products();
        summed(group, i).arrive();
    }
    // By a group's adding thread.
    template <class Work> __device__ __forceinline__ void add(const Work& work, int group) const {
        work.each([&](int n, int head, int tile) {
            i64 part = work.stored(head, tile) / Work::QUERIES * 2 + group;
            float* sums = work.p.sums + part * PART;
            int number = work.turn(tile);
            Turn turn{work.p.turns + part};
            turn.wait(number);
            fence_bulk();
            for (int round = 0; round < ROUNDS; round++) {
                int i = n * ROUNDS + round;
                u32 from = tiles + place(group, i) * Tile::BYTES;
                summed(group, i).wait(i / SLOTS);
                if (number == 0)
                    store_bulk(sums + round * (64 * COLUMNS), from, Tile::BYTES);
                else
                    add_bulk(sums + round * (64 * COLUMNS), from, Tile::BYTES);
                wait_bulk_read();
                added(group, i).arrive();
            }
            wait_bulk();
            fence_bulk();
            turn.end(number);
        });
    }

private:
    static __device__ __forceinline__ int place(int group, int i) { return group * SLOTS + i % SLOTS; }
    __device__ __forceinline__ Mbarrier summed(int group, int i) const { return barrier(2 * place(group, i)); }
    __device__ __forceinline__ Mbarrier added(int group, int i) const { return barrier(2 * place(group, i) + 1); }
    __device__ __forceinline__ Mbarrier barrier(int i) const { return {barriers + i * Mbarrier::BYTES}; }
};

} // namespace fla
