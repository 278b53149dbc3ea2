// The selective scan (see fla/selective_scan.cuh): y, the final state, and states on the way for the backward pass.
//
// While a tile of steps runs, the next one is on its way in registers. A tile runs in three parts, between barriers: delta and
// delta u of each step and channel; the scan; and from its sums y. More states than a slice take turns in the second part, and
// wait in memory.
//
// Constants: those of fla/selective_scan.cuh, SHARED_BYTES, SAVED_STEPS between the states saved, a multiple of LANES.
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
    float2 step[STEPS][CHANNELS];  // delta, delta u
    float b[STEPS][SLICE], c[STEPS][SLICE];
    float sum[STEPS][CHANNELS + 8];  // D u + C h; rows so that LANES of them do not meet in a bank
};
static_assert(sizeof(Shared) == SHARED_BYTES, "the launcher computes the same");

extern "C" __global__ void __launch_bounds__(THREADS, WARPS > 4 ? 2 : 3)
    selective_scan_forward(const __grid_constant__ SelectiveScanForward p) {
    Shared& shared = shared_memory_as<Shared>();
    ScanBlock block(p.scan, blockIdx.x);
    Column column(block);
    Lane lane;
    int slices = (p.scan.states + SLICE - 1) / SLICE, end = block.end;
    bool last = block.segment + 1 == p.scan.segments;

    Rows<Element> u_rows = channel_rows<Element>(block, p.scan.u), delta_rows = channel_rows<Element>(block, p.scan.delta);
    Rows<Element> z_rows = channel_rows<Element>(block, p.scan.z), y_rows = channel_rows<Element>(block, p.y);
    Rows<Element> b_rows = block.sequence.rows<Element>(p.scan.b, block.group);
    Rows<Element> c_rows = block.sequence.rows<Element>(p.scan.c, block.group);
    float bias = column.of(p.scan.delta_bias, block), skip = column.of(p.scan.d, block);
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

    Element u[ROWS], delta[ROWS], z[ROWS];
    Cells b, c;
    auto load_inputs = [&](int first) {
        column.load(u, u_rows, first, end);
        column.load(delta, delta_rows, first, end);
    };
    auto load_matrices = [&](int first, int slice) {
        b.load(b_rows, first, end, slice * SLICE, p.scan.states);
        c.load(c_rows, first, end, slice * SLICE, p.scan.states);
    };
    load_inputs(block.first);
    load_matrices(block.first, 0);

    States h, decays;
#pragma unroll 1
    for (int first = block.first; first < end; first += STEPS) {
        int steps = min(STEPS, end - first), present = column.count(first, end);
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
            int row = column.row + i * LANES;
            float x = to_float(u[i]);
            float size = StepSize(to_float(delta[i]) + bias).value;
            if (i >= present) size = 0;
            shared.step[row][column.channel] = make_float2(size, size * x);
            shared.sum[row][column.channel] = skip * x;
        }
        if (GATED) column.load(z, z_rows, first, end);
#pragma unroll 1
        for (int slice = 0; slice < slices; slice++) {
            b.store(shared.b), c.store(shared.c);
            if (slice + 1 < slices) {
                load_matrices(first, slice + 1);
            } else if (first + STEPS < end) {
                load_matrices(first + STEPS, 0);
                load_inputs(first + STEPS);
            }
            if (slices > 1 || first == block.first) {
                StatePlace now = place(slice, block.part(p.scan));
                h = now.load(first == block.first ? p.initial : p.running);
                decays = place(slice, 0).load_decays(p.scan.a);
            }
            __syncthreads();
#pragma unroll 1
            for (int batch = 0; batch < steps; batch += LANES) {
                if (p.saved && (first + batch) % SAVED_STEPS == 0)
                    place(slice, slot + (first + batch) / SAVED_STEPS).store(p.saved, h);
                float sums[LANES] = {};
#pragma unroll
                for (int i = 0; i < LANES; i++) {
                    float2 step = shared.step[batch + i][lane.channel];
                    States in = load_states(shared.b[batch + i] + lane.state), out = load_states(shared.c[batch + i] + lane.state);
#pragma unroll
                    for (int n = 0; n < STATES; n++) {
                        h.at[n] = fmaf(pow2(step.x * decays.at[n]), h.at[n], step.y * in.at[n]);
                        sums[i] = fmaf(out.at[n], h.at[n], sums[i]);
                    }
                }
                shared.sum[batch + threadIdx.x % LANES][lane.channel] += sum_over_lanes(sums);
            }
            if (slices > 1 || first + STEPS >= end) store_end(slice, h, first + STEPS < end);
            __syncthreads();
        }
        Element* y = y_rows[first + column.row] + column.channel;
        i64 stride = y_rows.stride * LANES;
#pragma unroll
        for (int i = 0; i < ROWS; i++, y += stride) {
            float sum = shared.sum[column.row + i * LANES][column.channel];
            if (GATED) sum *= to_float(z[i]) * sigmoid(to_float(z[i]));
            if (i < present) *y = from_float<Element>(sum);
        }
    }
}
