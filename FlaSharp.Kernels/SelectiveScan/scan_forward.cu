// The selective scan (see fla/selective_scan.cuh): y, the final state, and states on the way for the backward pass.
//
// While a tile of steps runs, the next one is on its way in registers. A tile runs in three parts, between barriers: delta and
// delta u of each step and channel; the scan; and from its sums y. More states than a slice take turns in the second part, and
// wait in memory.
//
// Constants: those of fla/selective_scan.cuh, SHARED_BYTES, SAVED_STEPS between the states saved.
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

struct Shared {
    float2 step[STEPS][PAIR_ROW];  // delta, delta u
    float matrices[2][STEPS][SLICE];  // B, C
    Sums sums;  // D u + C h
};
static_assert(sizeof(Shared) == SHARED_BYTES, "the launcher computes the same");
static_assert(SAVED_STEPS % (2 * LANES) == 0, "states are saved between batches");

extern "C" __global__ void __launch_bounds__(THREADS, WARPS > 4 ? 2 : 3)
    selective_scan_forward(const __grid_constant__ SelectiveScanForward p) {
    Shared& shared = shared_memory_as<Shared>();
    ScanBlock block(p.scan, blockIdx.x);
    Column column(block);
    Cells cells;
    Lane<2> lane;
    int slices = (p.scan.states + SLICE - 1) / SLICE, end = block.end;
    bool last = block.segment + 1 == p.scan.segments;

    auto strand = [&](const TensorView& view) { return column.strand(view, block, block.first); };
    auto u_strand = strand(p.scan.u), delta_strand = strand(p.scan.delta), z_strand = strand(p.scan.z), y_strand = strand(p.y);
    auto matrix_strand = cells.strand(p.scan, block, block.first);
    auto bias = column.load(p.scan.delta_bias, block), skip = column.load(p.scan.d, block);
    i64 slot = block.first_token(p.scan) / SAVED_STEPS + block.sequence.index;  // of `saved`: the sequence's first

    auto place = [&](int slice, i64 index) { return StatePlace(p.scan, block, lane, index, slice); };
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

    Pack u[Column::COUNT], delta[Column::COUNT], z[Column::COUNT], matrix[Cells::COUNT];
    auto load_inputs = [&](int first) {
        u_strand.load(u, column.left(first, end)), u_strand.move(1);
        delta_strand.load(delta, column.left(first, end)), delta_strand.move(1);
    };
    auto load_matrices = [&](int first, int slice) {
        matrix_strand.load(matrix, cells.left(first, end, slice, p.scan.states), slice * SLICE);
        if (slice + 1 == slices) matrix_strand.move(1);
    };
    load_inputs(block.first);
    load_matrices(block.first, 0);

    States h, decays;
#pragma unroll 1
    for (int first = block.first; first < end; first += STEPS) {
        int steps = min(STEPS, end - first), left = column.left(first, end);
#pragma unroll
        for (int i = 0; i < Column::COUNT; i++) {
            bool exists = i * Column::DISTANCE < left;
#pragma unroll
            for (int v = 0; v < VECTOR; v++) {
                float x = u[i][v], size = StepSize(exists ? delta[i][v] + bias[v] : StepSize::NONE).value;
                shared.step[column.row + i * Column::DISTANCE][column.position(v)] = make_float2(size, size * x);
                shared.sums.at(column.row + i * Column::DISTANCE, column.position(v)) = skip[v] * x;
            }
        }
        if (GATED) z_strand.load(z, left), z_strand.move(1);
#pragma unroll 1
        for (int slice = 0; slice < slices; slice++) {
            cells.store(shared.matrices, matrix);
            if (slice + 1 < slices) {
                load_matrices(first, slice + 1);
            } else if (first + STEPS < end) {
                load_matrices(first + STEPS, 0);
                load_inputs(first + STEPS);
            }
            if (slices > 1 || first == block.first) {
                h = place(slice, block.part(p.scan)).load(first == block.first ? p.initial : p.running);
                decays = place(slice, 0).load_decays(p.scan.a);
            }
            __syncthreads();
#pragma unroll 1
            for (int pair = 0; pair < steps; pair += 2 * LANES) {
                if (p.saved && (first + pair) % SAVED_STEPS == 0)
                    place(slice, slot + (first + pair) / SAVED_STEPS).store(p.saved, h);
#pragma unroll
                for (int batch = pair; batch < pair + 2 * LANES; batch += LANES) {
                    float sums[LANES] = {};
#pragma unroll
                    for (int i = batch; i < batch + LANES; i++) {
                        float2 step = shared.step[i][lane.position];
                        States b = load_states(shared.matrices[0][i] + lane.state);
                        States c = load_states(shared.matrices[1][i] + lane.state);
#pragma unroll
                        for (int n = 0; n < STATES; n++) {
                            h.at[n] = fmaf(pow2(step.x * decays.at[n]), h.at[n], step.y * b.at[n]);
                            sums[i - batch] = fmaf(c.at[n], h.at[n], sums[i - batch]);
                        }
                    }
                    shared.sums.at(batch + lane.index, lane.position) += lane.sum(sums);
                }
            }
            if (slices > 1 || first + STEPS >= end) store_end(slice, h, first + STEPS < end);
            __syncthreads();
        }
#pragma unroll
        for (int i = 0; i < Column::COUNT; i++) {
            float y[VECTOR];
#pragma unroll
            for (int v = 0; v < VECTOR; v++) {
                y[v] = shared.sums.at(column.row + i * Column::DISTANCE, column.position(v));
                if (GATED) y[v] *= z[i][v] * sigmoid(z[i][v]);
            }
            Pack pack;
            pack.set(y);
            if (i * Column::DISTANCE < left) y_strand.store(pack, i);
        }
        y_strand.move(1);
    }
}
