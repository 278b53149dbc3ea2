#include "Blocks/block_test.cuh"
#include "fla/mbarrier.cuh"

using namespace fla;

constexpr int PRODUCERS = 64, CONSUMERS = 96, THREADS = PRODUCERS + CONSUMERS;

// z [rows, CONSUMERS]: in each round the sum of what the producers wrote, one word each, and the consumer's number. Of the
// producers each thread arrives, of the consumers each warp.
extern "C" __global__ void __launch_bounds__(THREADS) mbarrier_phases(const __grid_constant__ BlockTest p) {
    u32 memory = shared_memory();
    Mbarrier full{memory + 4 * PRODUCERS}, empty{full.address + Mbarrier::BYTES};
    int thread = threadIdx.x;
    if (thread == 0) {
        full.init(PRODUCERS);
        empty.init(CONSUMERS / 32);
    }
    __syncthreads();
    for (int n = 0; n < p.rows; n++)
        if (thread < PRODUCERS) {
            empty.wait(n - 1);
            shared_store(memory + 4 * thread, 1000 * n + thread);
            full.arrive();
        } else {
            full.wait(n);
            int sum = 0;
            for (int i = 0; i < PRODUCERS; i++) sum += shared_load<int>(memory + 4 * i);
            empty.arrive_warp();
            static_cast<int*>(p.z)[n * CONSUMERS + thread - PRODUCERS] = sum + thread - PRODUCERS;
        }
}
