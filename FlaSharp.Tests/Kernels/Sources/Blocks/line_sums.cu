// Constants: LANES of a line, THREADS.
#define ELEMENT float
#define STREAM float
#define PER_THREAD 1
#define VECTOR 1
#define GATED 0
#include "Blocks/block_test.cuh"
#include "fla/rms_norm.cuh"

// z [3, THREADS] = the sums of x [3, THREADS] over lines of LANES threads.
extern "C" __global__ void __launch_bounds__(THREADS) line_sums(const __grid_constant__ BlockTest p) {
    for (int turn = 0; turn < 3; turn++)
        static_cast<float*>(p.z)[turn * THREADS + threadIdx.x] =
            fla::sum_line(static_cast<const float*>(p.x)[turn * THREADS + threadIdx.x], turn % 2);
}
