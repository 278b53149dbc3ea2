using FlaSharp.Ops;
using FlaSharp.Tests.TestSupport;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Gpu;

/// <summary>Kernels that write the gradients of parts into that of the whole give what libtorch puts together.</summary>
public sealed class PartsOnGpuTests
{
    [GpuTheory]
    [InlineData(32, ScalarType.BFloat16)]
    [InlineData(32, ScalarType.Float32)]
    [InlineData(33, ScalarType.BFloat16)] // rows that are not aligned
    public void Convolution_and_gated_norm(int size, ScalarType dtype) => SameGradients(dtype, [[size], [size], [3]], [size, 4],
        (parts, taps) => FlaOps.GatedRmsNorm(FlaOps.CausalConv1d(parts[0], taps, null, "silu").output, parts[1], null));

    [GpuTheory]
    [InlineData(32, 16)]
    [InlineData(33, 5)]
    public void Selective_scan(int size, int states) => SameGradients(ScalarType.BFloat16,
        [[size], [size], [1, states], [1, states]], [size, states],
        (parts, a) => FlaOps.SelectiveScan(parts[0], parts[0], a.to(ScalarType.Float32), parts[2], parts[3],
            z: parts[1], deltaSoftplus: true, aIsLog: true).output);

    [GpuTheory]
    [InlineData(4, 16, 32)]
    [InlineData(3, 21, 27)]
    public void Ssd(int heads, int headSize, int stateSize) => SameGradients(ScalarType.BFloat16,
        [[heads, headSize], [1, stateSize], [1, stateSize], [heads]], [heads],
        (parts, a) => FlaOps.Ssd(parts[0], parts[3], a, parts[1], parts[2], dtSoftplus: true, aIsLog: true).output);

    /// <summary>With parts that know of the whole, and with views of it.</summary>
    private static void SameGradients(
        ScalarType dtype, long[][] shapes, long[] parameterShape, Func<Tensor[], Tensor, Tensor> operation)
    {
        using var scope = NewDisposeScope();
        manual_seed(1);
        var widths = Array.ConvertAll(shapes, shape => shape.Aggregate((a, b) => a * b));
        var (values, parameter) = (randn([2, 70, widths.Sum()]).to(CUDA), randn(parameterShape).to(CUDA));
        Tensor[] Gradients(Func<Tensor, Tensor[]> split)
        {
            var (x, p) = (values.to(dtype).clone().requires_grad_(), parameter.to(dtype).clone().requires_grad_());
            var y = operation(split(x * 1), p);
            (y * arange(y.size(-1), device: CUDA).to(dtype)).to(ScalarType.Float32).sum().Backward();
            return [y.detach(), x.grad!, p.grad!];
        }
        var expected = Gradients(x => [.. x.split(widths, -1).Zip(shapes, (part, shape) => part.reshape([2, 70, .. shape]))]);
        var actual = Gradients(x => SplitFunction.Split(x, shapes));
        for (var i = 0; i < actual.Length; i++)
            Compare.Close(actual[i], expected[i], 1e-6, $"result {i}");
    }
}
