// The selective scan (see fla/selective_scan.cuh): y, the final state, and states on the way for the backward pass.
//
// Half of the warps scan; the others prepare tiles of steps for them, delta and delta u of each step and channel, B and C, and
// make y of the sums over states. While one tile is scanned, y of the one before and what the one after needs are made. More
// states than a slice take turns, and wait in memory.
//
// Constants: those of fla/selective_scan.cuh, SHARED_BYTES, SAVED_STEPS between the states saved.
#include "fla/mbarrier.cuh"
#include "fla/selective_scan.cuh"

using namespace fla;

struct SelectiveScanForward {
    SelectiveScan scan;
    TensorView y;          // [B, T, 1, E]
    const float* initial;  // [S, segments, E, N], or null for zeros
    float* final;          // [S, E, N], or null; it may be `initial`
    float* running;        // [S, segments, E, N]: where states wait; needed where N is more than a slice
    float* saved;          // [tokens / SAVED_STEPS + S, E, N], or null: before every SAVED_STEPS-th step of a sequence
};

struct Shared {  // of two tiles, or turns of a slice
    float2 step[2][STEPS][PAIR_ROW];  // delta, delta u
    float matrices[2][2][STEPS][SLICE];  // B, C
    Sums sums[2];  // C h
    u64 barriers[4];
};
static_assert(sizeof(Shared) == SHARED_BYTES, "the launcher computes the same");
static_assert(SAVED_STEPS % (2 * LANES) == 0, "states are saved between pairs of batches");

// What one kind of warps has done in a turn, for the other one: barriers of even and of odd turns. Each thread arrives for
// itself, as compute-sanitizer does not see what orders a warp's threads or named barriers that some only arrive at.
struct Turns {
    static constexpr int PREPARED = 0, SCANNED = 2;
    u32 barriers;

    __device__ __forceinline__ explicit Turns(const Shared& shared) : barriers(shared_address(shared.barriers)) {
        if (threadIdx.x < 4) Mbarrier{barriers + threadIdx.x * Mbarrier::BYTES}.init(THREADS);
        __syncthreads();
    }
    __device__ __forceinline__ void arrive(int what, int turn) const { at(what, turn).arrive(); }
    __device__ __forceinline__ void wait(int what, int turn) const { at(what, turn).wait(turn / 2); }

private:
    __device__ __forceinline__ Mbarrier at(int what, int turn) const { return {barriers + (what + turn % 2) * Mbarrier::BYTES}; }
};

// LANES steps of a thread's states: what does not depend on those before, and comes while they are under way. What it is made of
// is loaded a batch before.
struct Batch {
    States decays[LANES], inputs[LANES];
    float2 steps[LANES];
    States b[LANES];

    // The i-th.
    __device__ __forceinline__ void prepare(int i, const States& rates) {
#pragma unroll
        for (int n = 0; n < STATES; n++) {
            decays[i].at[n] = pow2(steps[i].x * rates.at[n]);
            inputs[i].at[n] = steps[i].y * b[i].at[n];
        }
    }
};

// Of a multiprocessor: more would leave no registers for loads ahead.
constexpr int BLOCKS = SHARED_BYTES > 112 << 10 ? 1 : 2;

extern "C" __global__ void __launch_bounds__(2 * THREADS, BLOCKS)
    selective_scan_forward(const __grid_constant__ SelectiveScanForward p) {
    Shared& shared = shared_memory_as<Shared>();
    Turns turns(shared);
    ScanBlock block(p.scan, blockIdx.x);
    int slices = (p.scan.states + SLICE - 1) / SLICE, end = block.end;

    if (__shfl_sync(~0u, threadIdx.x, 0) < THREADS) {  // a whole warp, as the compiler now sees
        Column column(block);
        Cells cells;
        auto strand = [&](const TensorView& view) { return column.strand(view, block, block.first); };
        auto u_strand = strand(p.scan.u), delta_strand = strand(p.scan.delta), y_strand = strand(p.y);
        auto u_again = u_strand, z_strand = strand(p.scan.z);
        auto matrix_strand = cells.strand(p.scan, block, block.first);
        auto bias = column.load(p.scan.delta_bias, block), skip = column.load(p.scan.d, block);

        Pack u[Column::COUNT], delta[Column::COUNT], matrix[Cells::COUNT];
        auto load_inputs = [&](int first) {
            u_strand.load(u, column.left(first, end)), u_strand.move(1);
            delta_strand.load(delta, column.left(first, end)), delta_strand.move(1);
        };
        auto load_matrices = [&](int first, int slice) {
            matrix_strand.load(matrix, cells.left(first, end, slice, p.scan.states), slice * SLICE);
            if (slice + 1 == slices) matrix_strand.move(1);
        };
        // y of a tile whose last turn is `turn`.
        auto finish = [&](int first, int turn) {
            int left = column.left(first, end);
            Pack u[Column::COUNT], z[Column::COUNT];
            u_again.load(u, left), u_again.move(1);
            if (GATED) z_strand.load(z, left), z_strand.move(1);
            turns.wait(Turns::SCANNED, turn);
            Sums& sums = shared.sums[first / STEPS % 2];
#pragma unroll
            for (int i = 0; i < Column::COUNT; i++) {
                float y[VECTOR];
#pragma unroll
                for (int v = 0; v < VECTOR; v++) {
                    y[v] = fmaf(skip[v], u[i][v], sums.at(column.row + i * Column::DISTANCE, column.position(v)));
                    if (GATED) y[v] *= z[i][v] * sigmoid(z[i][v]);
                }
                Pack pack;
                pack.set(y);
                if (i * Column::DISTANCE < left) y_strand.store(pack, i);
            }
            y_strand.move(1);
        };
        if (block.first >= end) return;
        load_inputs(block.first);
        load_matrices(block.first, 0);

        int first = block.first, turn = 0;
#pragma unroll 1
        for (; first < end; first += STEPS) {
            int left = column.left(first, end);
#pragma unroll
            for (int i = 0; i < Column::COUNT; i++) {
                bool exists = i * Column::DISTANCE < left;
#pragma unroll
                for (int v = 0; v < VECTOR; v++) {
                    float size = StepSize(exists ? delta[i][v] + bias[v] : StepSize::NONE).value;
                    shared.step[first / STEPS % 2][column.row + i * Column::DISTANCE][column.position(v)] =
                        make_float2(size, size * u[i][v]);
                }
            }
#pragma unroll 1
            for (int slice = 0; slice < slices; slice++, turn++) {
                cells.store(shared.matrices[turn % 2], matrix);
                turns.arrive(Turns::PREPARED, turn);
                if (slice + 1 < slices) {
                    load_matrices(first, slice + 1);
                } else if (first + STEPS < end) {
                    load_matrices(first + STEPS, 0);
                    load_inputs(first + STEPS);
                }
                if (slice > 0)
                    turns.wait(Turns::SCANNED, turn - 1);
                else if (turn > 0)
                    finish(first - STEPS, turn - 1);
            }
        }
        finish(first - STEPS, turn - 1);
    } else {
        Lane lane(threadIdx.x - THREADS);
        bool last = block.segment + 1 == p.scan.segments;
        int slot = block.first_token(p.scan) / SAVED_STEPS + block.sequence.index;  // of `saved`: the sequence's first

        // Computed where it is needed: the scan needs the registers.
        auto place = [&](int slice, int index) {
            return StatePlace(p.scan, block, Lane(opaque(threadIdx.x) - THREADS), opaque(index), slice);
        };
        auto store_end = [&](int slice, const States& h, bool wait) {
            if (last && p.final && !wait)
                place(slice, block.sequence.index).store(p.final, h);
            else if (slices > 1)
                place(slice, block.part(p.scan)).store(p.running, h);
        };
        if (block.first >= end) {
            for (int slice = 0; slice < slices; slice++)
                store_end(slice, place(slice, block.part(p.scan)).load(p.initial), false);
            return;
        }

        States h, rates;
        int turn = 0;
#pragma unroll 1
        for (int first = block.first; first < end; first += STEPS) {
            auto& step = shared.step[first / STEPS % 2];
            Sums& all_sums = shared.sums[first / STEPS % 2];
            int steps = min(STEPS, end - first);
#pragma unroll 1
            for (int slice = 0; slice < slices; slice++, turn++) {
                auto& matrices = shared.matrices[turn % 2];
                auto save = [&](int pair) {
                    if (p.saved && (first + pair) % SAVED_STEPS == 0)
                        place(slice, slot + (first + pair) / SAVED_STEPS).store(p.saved, h);
                };
                Batch batch;
                auto load = [&](int i, int at) {
                    batch.steps[i] = step[at][lane.position];
                    batch.b[i] = load_states(matrices[0][at] + lane.state);
                };
                // Each step leaves its place in the batch to the one LANES steps later, whose loads to another one, if there are
                // so many.
                auto run = [&](int from, bool next, bool second) {
                    float sums[LANES] = {};
#pragma unroll
                    for (int i = 0; i < LANES; i++) {
                        States c = load_states(matrices[1][from + i] + lane.state);
#pragma unroll
                        for (int n = 0; n < STATES; n++) {
                            h.at[n] = fmaf(batch.decays[i].at[n], h.at[n], batch.inputs[i].at[n]);
                            sums[i] = fmaf(c.at[n], h.at[n], sums[i]);
                        }
                        if (next) batch.prepare(i, rates);
                        if (second) load(i, from + 2 * LANES + i);
                    }
                    float sum = lane.sum(sums), &to = all_sums.at(from + lane.index, lane.position);
                    to = slice > 0 ? to + sum : sum;
                };
                if (slices > 1 || first == block.first) {
                    h = place(slice, block.part(p.scan)).load(first == block.first ? p.initial : p.running);
                    rates = place(slice, 0).load_decays(p.scan);
                }
                turns.wait(Turns::PREPARED, turn);
#pragma unroll
                for (int i = 0; i < LANES; i++) load(i, i);
#pragma unroll
                for (int i = 0; i < LANES; i++) batch.prepare(i, rates), load(i, LANES + i);
                int pair = 0;
#pragma unroll 1
                for (; pair + 2 * LANES < steps; pair += 2 * LANES) {
                    save(pair);
                    run(pair, true, true);
                    run(pair + LANES, true, true);
                }
                save(pair);
                run(pair, true, false);
                run(pair + LANES, false, false);
                if (slices > 1 || first + STEPS >= end) store_end(slice, h, first + STEPS < end);
                turns.arrive(Turns::SCANNED, turn);
            }
        }
    }
}
