using System.Runtime.Intrinsics;
using FlaSharp.Kernels.Cpu;
using static FlaSharp.Kernels.Cpu.PartialVector;

namespace FlaSharp.Kernels.Activation;

/// <summary>y = gate sigmoid(gate) up, element by element.</summary>
internal static unsafe class SwiGluCpu
{
    private const long BlockSize = 16 * 1024; // elements handed to one core at a time

    public static void Forward(float* gate, float* up, float* y, long count) =>
        ForEachBlock(count, (first, end) =>
        {
            for (var i = first; i < end; i += Vector512<float>.Count)
            {
                var g = Load(gate + i, end - i);
                Store(g * VectorMath.Sigmoid(g) * Load(up + i, end - i), y + i, end - i);
            }
        });

    public static void Backward(float* gate, float* up, float* dy, float* dGate, float* dUp, long count) =>
        ForEachBlock(count, (first, end) =>
        {
            for (var i = first; i < end; i += Vector512<float>.Count)
            {
                var g = Load(gate + i, end - i);
                var dyi = Load(dy + i, end - i);
                var sigmoid = VectorMath.Sigmoid(g);
                var swish = g * sigmoid;
                Store(dyi * swish, dUp + i, end - i);
                // swish' = s (1 + g (1 - s)) = s + swish (1 - s)
                var slope = Vector512.FusedMultiplyAdd(swish, Vector512<float>.One - sigmoid, sigmoid);
                Store(dyi * Load(up + i, end - i) * slope, dGate + i, end - i);
            }
        });

    private static void ForEachBlock(long count, Action<long, long> body) =>
        CpuParallel.For(checked((int)((count + BlockSize - 1) / BlockSize)),
            block => body(block * BlockSize, Math.Min(count, (block + 1) * BlockSize)));
}
