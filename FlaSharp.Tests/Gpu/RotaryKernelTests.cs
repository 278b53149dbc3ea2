using FlaSharp.Modules;
using FlaSharp.Ops;
using FlaSharp.Ops.Reference;
using FlaSharp.Tests.Reference;
using FlaSharp.Tests.TestSupport;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Gpu;

/// <summary>The CUDA kernel of the rotary embedding: outputs and gradients against float64, in NaN's place.</summary>
public sealed class RotaryKernelTests
{
    [GpuTheory]
    [InlineData(ScalarType.Float32)]
    [InlineData(ScalarType.BFloat16)]
    [InlineData(ScalarType.Float16)]
    public void Sizes_and_positions(ScalarType dtype)
    {
        foreach (var (batch, time, heads, size, dim) in new[]
            { (1, 1, 1, 2, 2), (2, 17, 3, 7, 6), (2, 9, 2, 60, 60), (3, 33, 4, 64, 64), (1, 20, 2, 128, 128), (2, 11, 2, 100, 34),
                (2, 5, 2, 96, 32), (1, 3, 2, 256, 256) })
            foreach (var interleaved in new[] { false, true })
            {
                using var scope = NewDisposeScope();
                Tensor[] all = [arange(time), -arange(time), arange(time).to(int32) + 1_000_000, randint(0, 5000, [batch, time]),
                    randint(0, 5000, [time, batch]).transpose(0, 1)];
                foreach (var positions in all)
                    Check(randn(batch, time, heads, size).to(dtype), positions, interleaved, dim);
            }
    }

    [GpuFact]
    public void Views_are_read_where_they_lie()
    {
        using var scope = NewDisposeScope();
        var wide = randn(2, 6, 4, 200).to(bfloat16);
        foreach (var start in new[] { 0, 8, 3 })
            Check(wide[.., .., .., start..(start + 64)], arange(6), false, 64);
        Check(wide.transpose(1, 2), arange(4), true, 128);
        Check(wide.transpose(1, 3)[.., .., .., ..6], arange(200), false, 4);
    }

    [GpuFact]
    public void Long_inputs_equal_the_composed_path_and_repeat_bit_by_bit()
    {
        using var scope = NewDisposeScope();
        foreach (var (batch, time, heads, size) in new[] { (2, 5000, 32, 128), (3, 40_000, 1, 64), (1, 7, 300, 32) })
        {
            var (x, at) = (randn(batch, time, heads, size).to(CUDA), arange(time, device: CUDA) + 900_000);
            var y = FlaOps.RotaryEmbedding(x, at);
            var (cos, sin) = RotaryAngles.Of(at, 10000, size);
            Compare.Close(y, RotaryReference.Rotate(x, cos, sin, false), 1e-6, $"T = {time}");
            Assert.True(y.equal(FlaOps.RotaryEmbedding(x, at)).all().ToBoolean());
            using var module = new RotaryEmbedding(size);
            Assert.True(y.equal(module.forward(x, 900_000)).all().ToBoolean());
            Assert.True(y.equal(module.forward(x, at)).all().ToBoolean());
        }
    }

    internal static void Check(Tensor x, Tensor positions, bool interleaved, long dim)
    {
        var limit = x.dtype == ScalarType.Float32 ? 1e-6 : 0.004;
        var expected = Gradients.Of(i => (NaiveRotary.Rotate(i["x"], positions, 500, interleaved, dim), null),
            new Dictionary<string, Tensor> { ["x"] = x }, float64);
        var actual = Gradients.Of(i => (FlaOps.RotaryEmbedding(i["x"], positions.cuda(), 500, interleaved, dim), null),
            new Dictionary<string, Tensor> { ["x"] = x.cuda() });
        Gradients.Close(actual, expected, limit, limit,
            $"x [{string.Join(", ", x.shape)}] {x.dtype}, interleaved {interleaved}, {dim} features");
    }
}
