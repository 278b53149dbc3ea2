// For the test that the compiler's words reach the caller.
extern "C" __global__ void mistake(float* x)
{
    x[0] = undeclared;
}
