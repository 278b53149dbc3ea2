// The tests of the building blocks in Include/fla: kernels of one block that put what it does in plain arrays.
#pragma once

struct BlockTest {
    const void *x, *y; // inputs and outputs, as each kernel says
    void *z, *w;
    long long stride;
    int rows, cols;
};
