// Constants: those of recurrence.cuh.
#include "Blocks/block_test.cuh"
#include "fla/recurrence.cuh"

using namespace fla;

// z [BATCH, COLUMNS] = the sums over the row lanes of x [ROW_LANES, BATCH, COLUMNS]; w [32 WARPS] = those of the threads' numbers
// over lanes that are 4 apart.
extern "C" __global__ void __launch_bounds__(THREADS) row_sums(const __grid_constant__ BlockTest p) {
    Place place;
    const float* x = static_cast<const float*>(p.x) + place.row / 4 * BATCH * COLUMNS;
    float sums[SUMS];
    for (int i = 0; i < SUMS; i++) sums[i] = x[i / THREAD_COLUMNS * COLUMNS + place.column + i % THREAD_COLUMNS];
    sum_rows(sums);
    if (place.first)
        for (int i = 0; i < VALUES; i++) static_cast<float*>(p.z)[place.step * COLUMNS + place.output_column + i] = sums[i];
    static_cast<float*>(p.w)[threadIdx.x] = sum_lanes<4>(static_cast<float>(threadIdx.x));
}
