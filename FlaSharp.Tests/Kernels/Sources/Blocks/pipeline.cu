// Constants: STAGES.
#include "Blocks/block_test.cuh"
#include "fla/chunk_pipeline.cuh"

using namespace fla;

constexpr int DEPTH = STAGES, PRODUCERS = 64, CONSUMERS = 96, THREADS = PRODUCERS + CONSUMERS, WORDS = 4 * PRODUCERS;
typedef ChunkPipeline<DEPTH, PRODUCERS, CONSUMERS, DEPTH * WORDS * 4> Pipeline;

// z [rows, WORDS] = x [rows, WORDS], the numbers from 0 on, and a million in odd chunks: producers copy a chunk and change what
// other threads of them copied, one of them having seen whether the chunk is odd; consumers take it.
extern "C" __global__ void __launch_bounds__(THREADS) pipeline(const __grid_constant__ BlockTest p) {
    u32 memory = shared_memory();
    auto word = [&](int n, int i) { return memory + (n % DEPTH * WORDS + i) * 4; };
    const int* x = static_cast<const int*>(p.x);
    int thread = threadIdx.x;
    auto produce = [&] {
        auto load = [&](int n) {
            if (n < p.rows) copy_async<16>(word(n, 4 * thread), x + n * WORDS + 4 * thread, true);
        };
        Pipeline::produce(p.rows, load, [&](int n) {
            int first = 4 * (PRODUCERS - 1 - thread); // another thread's
            bool odd = Pipeline::any_producer(thread == n % PRODUCERS && shared_load<int>(word(n, first)) / WORDS % 2);
            for (int i = first; i < first + 4; i++)
                shared_store(word(n, i), shared_load<int>(word(n, i)) + (odd ? 1000000 : 0));
        });
    };
    auto consume = [&] {
        for (int n = 0; n < p.rows; n++) {
            Pipeline::wait(n);
            for (int i = CONSUMERS + PRODUCERS - 1 - thread; i < WORDS; i += CONSUMERS)
                static_cast<int*>(p.z)[n * WORDS + i] = shared_load<int>(word(n, i));
            Pipeline::release(n);
        }
    };
    Pipeline::run<0, 0>(produce, consume);
}

// Named barriers alone. w [THREADS]: whether thread `rows` is in the same group, of producers or consumers; z [CONSUMERS] = the
// sum of what the producers, who only arrive, wrote before, and the thread's number.
extern "C" __global__ void __launch_bounds__(THREADS) named_barriers(const __grid_constant__ BlockTest p) {
    u32 memory = shared_memory();
    int thread = threadIdx.x;
    bool producer = thread < PRODUCERS;
    static_cast<int*>(p.w)[thread] = barrier_any(producer ? 14 : 15, producer ? PRODUCERS : CONSUMERS, thread == p.rows);
    if (producer) {
        shared_store(memory + 4 * thread, thread + 1);
        barrier_arrive(3, THREADS);
    } else {
        barrier_wait(3, THREADS);
        int sum = 0;
        for (int i = 0; i < PRODUCERS; i++) sum += shared_load<int>(memory + 4 * i);
        static_cast<int*>(p.z)[thread - PRODUCERS] = sum + thread;
    }
}
