// What the segments of a cut sequence do on their own, from zeros: forwards (BACKWARD = 0) the state after each,
//     h_t[n] = exp(delta_t A[n]) h_{t-1}[n] + delta_t u_t B_t[n]
// backwards the gradient of the state before each, with g the gradient of C h + D u:
//     dh_{t-1}[n] = exp(delta_t A[n]) (dh_t[n] + g_t C_t[n])
// and the sum of delta over each: exp(sum A[n]) is what a segment does to what it starts from. Segments whose result nobody
// needs, the last ones forwards and the first ones backwards, are left out. What is a segment here is a part of one elsewhere:
// these blocks do little, so that more of them are wanted.
//
// Constants: those of fla/selective_scan.cuh, SHARED_BYTES, BACKWARD.
#include "fla/selective_scan.cuh"

using namespace fla;

struct SelectiveScanSegmentState {
    SelectiveScan scan;
    TensorView dy;     // [B, T, 1, E]; backwards
    float* states;     // [S, segments, E, N]
    float* delta_sums; // [S, segments, E]
};

struct Shared {
    float2 step[STEPS][PAIR_ROW];  // delta; delta u or g
    float matrices[2][STEPS][SLICE];
};
static_assert(sizeof(Shared) == SHARED_BYTES, "the launcher computes the same");

extern "C" __global__ void __launch_bounds__(THREADS, 20 / WARPS)
    selective_scan_segment_state(const __grid_constant__ SelectiveScanSegmentState p) {
    follow_stream();
    Shared& shared = shared_memory_as<Shared>();
    int slices = (p.scan.states + SLICE - 1) / SLICE, slice = blockIdx.x % slices;
    ScanBlock block(p.scan, blockIdx.x / slices);
    if (BACKWARD ? block.segment < p.scan.parts : block.segment >= p.scan.segments - p.scan.parts) return;
    Column column(block);
    Cells cells;
    Lane lane(threadIdx.x);
    int end = block.end, tiles = (end - block.first + STEPS - 1) / STEPS;
    constexpr int MOVE = BACKWARD ? -1 : 1;
    int start = BACKWARD ? block.first + (tiles - 1) * STEPS : block.first;

    auto strand = [&](const TensorView& view) { return column.strand(view, block, start); };
    auto delta_strand = strand(p.scan.delta), input_strand = strand(BACKWARD ? p.dy : p.scan.u), z_strand = strand(p.scan.z);
    auto matrix_strand = cells.strand(p.scan, block, start);
    auto bias = column.load(p.scan.delta_bias, block);

    Pack delta[Column::COUNT], input[Column::COUNT], z[Column::COUNT], matrix[Cells::COUNT];
    auto load = [&](int first) {
        int left = column.left(first, end);
        delta_strand.load(delta, left), delta_strand.move(MOVE);
        input_strand.load(input, left), input_strand.move(MOVE);
        if (BACKWARD && GATED) z_strand.load(z, left), z_strand.move(MOVE);
        matrix_strand.load(matrix, cells.left(first, end, slice, p.scan.states), slice * SLICE), matrix_strand.move(MOVE);
    };
    if (tiles > 0) load(start);

    StatePlace place(p.scan, block, lane, block.part(p.scan), slice);
    States h = {}, rates = StatePlace(p.scan, block, lane, 0, slice).load_decays(p.scan);
    float delta_sum = 0;
#pragma unroll 1
    for (int tile = 0; tile < tiles; tile++) {
        int first = start + tile * MOVE * STEPS, left = column.left(first, end);
#pragma unroll
        for (int i = 0; i < Column::COUNT; i++) {
            bool exists = i * Column::DISTANCE < left;
#pragma unroll
            for (int v = 0; v < VECTOR; v++) {
                float size = StepSize(exists ? delta[i][v] + bias[v] : StepSize::NONE).value, x = input[i][v];
                if (!BACKWARD)
                    x *= size;
                else if (GATED)
                    x *= z[i][v] * sigmoid(z[i][v]);
                shared.step[column.row + i * Column::DISTANCE][column.position(v)] = make_float2(size, x);
            }
        }
        cells.store(shared.matrices, matrix);
        if (tile + 1 < tiles) load(first + MOVE * STEPS);
        __syncthreads();
        int steps = min(STEPS, end - first);
        constexpr int BATCH = 8;
#pragma unroll 1
        for (int batch = 0; batch < steps; batch += BATCH) {
#pragma unroll
            for (int i = 0; i < BATCH; i++) {
                int at = BACKWARD ? (steps + BATCH - 1) / BATCH * BATCH - 1 - batch - i : batch + i;
                float2 step = shared.step[at][lane.position];
                States x = load_states(shared.matrices[BACKWARD][at] + lane.state);
                delta_sum += step.x;
#pragma unroll
                for (int n = 0; n < STATES; n++) {
                    float decay = pow2(step.x * rates.at[n]);
                    h.at[n] = BACKWARD ? decay * fmaf(step.y, x.at[n], h.at[n]) : fmaf(decay, h.at[n], step.y * x.at[n]);
                }
            }
        }
        __syncthreads();
    }
    place.store(p.states, h);
    if (slice == 0 && lane.state == 0 && lane.channel < block.channels)
        p.delta_sums[block.part(p.scan) * p.scan.channels + block.first_channel + lane.channel] = delta_sum;
}
