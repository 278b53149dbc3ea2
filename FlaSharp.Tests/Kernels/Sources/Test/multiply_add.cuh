#pragma once

__device__ inline float multiply_add(float a, float x, float y) { return a * x + y; }
