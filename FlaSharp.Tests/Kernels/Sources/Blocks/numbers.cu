// Constants: TYPE.
#include "Blocks/block_test.cuh"
#include "fla/ptx.cuh"
#include "fla/vector.cuh"

using namespace fla;

constexpr int THREADS = 256;
typedef TYPE T;

// z = 2^x and w = the larger of x and y, for `rows` floats.
extern "C" __global__ void __launch_bounds__(THREADS) functions(const __grid_constant__ BlockTest p) {
    const float *x = static_cast<const float*>(p.x), *y = static_cast<const float*>(p.y);
    for (int i = threadIdx.x; i < p.rows; i += THREADS) {
        static_cast<float*>(p.z)[i] = pow2(x[i]);
        static_cast<float*>(p.w)[i] = max_nan(x[i], y[i]);
    }
}

// z [rows] = x of T as float32; w [rows] = y of float32 as T. Eight at a time, through a Vector, a Pair and one by one.
extern "C" __global__ void __launch_bounds__(THREADS) conversions(const __grid_constant__ BlockTest p) {
    const T* x = static_cast<const T*>(p.x);
    const float* y = static_cast<const float*>(p.y);
    float* z = static_cast<float*>(p.z);
    T* w = static_cast<T*>(p.w);
    for (int i = threadIdx.x * 8; i < p.rows; i += THREADS * 8) {
        if (i % 16 == 0) {
            Vector<T, 8> vector;
            vector.load(x + i);
            for (int c = 0; c < 8; c++) z[i + c] = vector[c];
            float values[8];
            for (int c = 0; c < 8; c++) values[c] = y[i + c];
            vector.set(values);
            vector.store(w + i);
        } else {
            for (int c = 0; c < 8; c++) {
                Vector<T, 1> one;
                one.load(x + i + c);
                z[i + c] = one[0];
                w[i + c] = from_float<T>(y[i + c]);
            }
        }
    }
}
