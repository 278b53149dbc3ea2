#pragma once
#include "Test/multiply_add.cuh"

struct AxpyParameters
{
    const float* x;
    float* y;
    long long count;
    float a;
};

__device__ inline float axpy(const AxpyParameters& p, long long i) { return multiply_add(p.a, p.x[i], p.y[i]); }
