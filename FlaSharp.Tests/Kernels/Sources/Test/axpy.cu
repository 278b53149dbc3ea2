// y = a x + y, to test the kernel runtime with.
#include "Test/axpy.cuh"

extern "C" __global__ void __launch_bounds__(THREADS) axpy(const __grid_constant__ AxpyParameters p)
{
    for (long long i = blockIdx.x * (long long)THREADS + threadIdx.x; i < p.count; i += gridDim.x * (long long)THREADS)
        p.y[i] = axpy(p, i);
}

// y = the sum of x within a block, through dynamic shared memory of SHARED_FLOATS.
extern "C" __global__ void __launch_bounds__(THREADS) block_sum(const __grid_constant__ AxpyParameters p)
{
    extern __shared__ float values[];
    values[SHARED_FLOATS - 1 - threadIdx.x] = p.x[blockIdx.x * (long long)THREADS + threadIdx.x];
    __syncthreads();
    if (threadIdx.x == 0)
    {
        float sum = 0;
        for (int i = 0; i < THREADS; i++)
            sum += values[SHARED_FLOATS - 1 - i];
        p.y[blockIdx.x] = sum;
    }
}

// Writes where nothing is.
extern "C" __global__ void __launch_bounds__(THREADS) fail(const __grid_constant__ AxpyParameters p)
{
    p.y[-(1LL << 40)] = 1;
}
