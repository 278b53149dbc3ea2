// The gradients of causal_conv_forward.cu. With g[t] = dy[t] f'(s[t]), s computed again, and no g outside of the sequence,
//     r[t] = sum over w of weight[w] g[t - w],  dx[t] = r[t + PAST],  dweight[w] = sum over t of g[t] x[t - PAST + w],
// and dbias is the sum of g. The first PAST of r are the gradient of the initial state. The gradient of the final state adds to
// the last PAST of r. A run needs g up to PAST tokens after its end: the next one computes these again.
// dweight and dbias are sums over tokens: each block writes one part of them, and causal_conv_sum.cu adds these up.
#include "fla/causal_conv.cuh"

using namespace fla;

struct CausalConvBackward {
    ConvShape shape;
    TensorView x, dy, dx; // [B, T, channels]; dy may be none
    ConvParameters parameters;
    const float *initial_state, *final_gradient; // [S, channels, PAST], or null
    float* initial_gradient;                     // [S, channels, PAST], or null
    float* parts; // [blocks, WIDTH + 1, VECTOR, 32], in the order of the blocks, of tap, channel and lane; or null
};

// Sums over a run.
struct Sums {
    float taps[WIDTH + 1][VECTOR] = {}; // dweight, then dbias

    __device__ __forceinline__ void add(const float (&g)[VECTOR], const Window& past, const float (&current)[VECTOR]) {
#pragma unroll
        for (int i = 0; i < VECTOR; i++) {
#pragma unroll
            for (int j = 0; j < PAST; j++) taps[j][i] += g[i] * past.values[j][i];
            taps[PAST][i] += g[i] * current[i];
            taps[WIDTH][i] += g[i];
        }
    }
    // Adds up those of a block's warps and writes them. The whole block comes here.
    __device__ __forceinline__ void write(float* part) const {
        __shared__ float warps[WARPS][WIDTH + 1][VECTOR][32];
        int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
        for (int w = 0; w <= WIDTH; w++)
#pragma unroll
            for (int i = 0; i < VECTOR; i++) warps[warp][w][i][lane] = taps[w][i];
        __syncthreads();
        for (int line = warp; line < (WIDTH + 1) * VECTOR; line += WARPS) {
            float sum = 0;
#pragma unroll
            for (int i = 0; i < WARPS; i++) sum += warps[i][line / VECTOR][line % VECTOR][lane];
            part[line * 32 + lane] = sum;
        }
    }
};

// A thread's march over its run.
struct March {
    const CausalConvBackward& p;
    const ConvPlace& place;
    Sums& sums;
    Taps taps;
    Rows<const Element> x, dy;
    Rows<Element> dx;
    Window past, gradients; // x and g before the next token

    __device__ __forceinline__ March(const CausalConvBackward& parameters, const ConvPlace& where, Sums& run)
        : p(parameters), place(where), sums(run), taps(p.parameters, place.channel), x(place.rows<const Element>(p.x)),
          dy(place.rows<const Element>(p.dy)), dx(place.rows<Element>(p.dx)) {
        Inputs{x, place.state(p.initial_state, p.shape)}.load(past, place.first);
        gradients.clear();
    }

    // COUNT tokens from t on, all of the run; or one that may be beyond the run, or beyond the sequence.
    template <int COUNT> __device__ __forceinline__ void steps(int t) {
        constexpr bool INSIDE = COUNT > 1;
        bool exists = INSIDE || t < place.sequence.length;
        Chunk inputs[COUNT], output_gradients[COUNT];
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            inputs[i].clear(), output_gradients[i].clear();
            if (exists) inputs[i].load(x[t + i]);
            if (exists && p.dy.data) output_gradients[i].load(dy[t + i]);
        }
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            float current[VECTOR], g[VECTOR], r[VECTOR];
#pragma unroll
            for (int c = 0; c < VECTOR; c++) current[c] = inputs[i][c], g[c] = output_gradients[i][c];
            if (SILU && exists) {
                float s[VECTOR];
                convolve(s, taps, past, current);
#pragma unroll
                for (int c = 0; c < VECTOR; c++) {
                    float gate = sigmoid(s[c]);
                    g[c] *= gate * (1 + s[c] * (1 - gate));
                }
            }
            if (INSIDE || t < place.end) sums.add(g, past, current);
            past.push(current);
#pragma unroll
            for (int c = 0; c < VECTOR; c++) {
                r[c] = taps.weights[0][c] * g[c];
#pragma unroll
                for (int w = 1; w < WIDTH; w++) r[c] += taps.weights[w][c] * gradients.values[PAST - w][c];
            }
            gradients.push(g);
            if (!exists) add_final_gradient(r, t);
            if (t + i >= place.first + PAST) {
                inputs[i].set(r);
                inputs[i].store(dx[t + i - PAST]);
            } else if (place.first == 0) {
                write_initial_gradient(r, t + i);
            }
        }
    }

private:
    __device__ __forceinline__ void add_final_gradient(float (&r)[VECTOR], int t) const {
        if (const float* gradient = place.state(p.final_gradient, p.shape))
#pragma unroll
            for (int c = 0; c < VECTOR; c++) r[c] += gradient[c * PAST + t - place.sequence.length];
    }
    __device__ __forceinline__ void write_initial_gradient(const float (&r)[VECTOR], int t) const {
        if (float* gradient = place.state(p.initial_gradient, p.shape))
#pragma unroll
            for (int c = 0; c < VECTOR; c++) gradient[c * PAST + t] = r[c];
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
    causal_conv_backward(const __grid_constant__ CausalConvBackward p) {
    ConvPlace place(p.shape);
    Sums sums;
    if (place.exists) {
        March march(p, place, sums);
        int t = place.first;
        for (; t + STEPS <= place.end; t += STEPS) march.steps<STEPS>(t);
        for (; t < place.end + PAST; t++) march.steps<1>(t);
    }
    if (p.parts) sums.write(p.parts + (i64)blockIdx.x * ((WIDTH + 1) * GROUP));
}
