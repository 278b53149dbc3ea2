// Asks for registers where their number at the start is not known, which ptxas ignores: for the test that this is seen.
extern "C" __global__ void slow(float* x)
{
    asm volatile("setmaxnreg.inc.sync.aligned.u32 240;\n");
    x[threadIdx.x] *= 2;
}
