using FlaSharp.Kernels.Conv;
using FlaSharp.Kernels.Runtime;
using FlaSharp.Ops;
using FlaSharp.Tests.Reference;
using FlaSharp.Tests.TestSupport;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Gpu;

/// <summary>
/// The CUDA kernels of the causal convolution: output, final state and all gradients against float64, in memory that is NaN
/// before.
/// </summary>
public sealed class CausalConvKernelTests
{
    private const double Float32Limit = 1e-5;
    private const double HalfLimit = 4e-3; // what is written in 16 bits carries their rounding

    private static readonly ScalarType[] s_dtypes = [ScalarType.Float32, ScalarType.BFloat16, ScalarType.Float16];

    [GpuTheory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(3)]
    [InlineData(4)]
    [InlineData(5)]
    [InlineData(6)]
    [InlineData(7)]
    [InlineData(8)]
    [InlineData(9)]
    [InlineData(32)]
    public void Widths(int width)
    {
        foreach (var dtype in s_dtypes)
            foreach (var (batch, time, channels) in new[] { (2, 37, 33), (1, 65, 128), (2, 1030, 1024) })
            {
                Check(Inputs(batch, time, channels, width, dtype), silu: width % 2 == 0, null);
                Check(Inputs(batch, time, channels, width, dtype, bias: false, state: false), silu: true, null);
            }
    }

    [GpuTheory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(3)]
    [InlineData(4)]
    [InlineData(31)]
    [InlineData(32)]
    [InlineData(33)]
    [InlineData(500)]
    [InlineData(65_536)]
    public void Lengths(int time)
    {
        foreach (var state in new[] { true, false })
        {
            Check(Inputs(2, time, 7, 4, ScalarType.Float32, state: state), silu: true, null);
            Check(Inputs(1, time, 64, 4, ScalarType.BFloat16, state: state), silu: true, null);
        }
    }

    [GpuFact]
    public void Packed_sequences()
    {
        long[][] layouts =
        [
            [0, 0, 1, 3, 67, 67, 130, 200, 200], [0, 5], [0, 0, 0, 7], [0, 1000, 3000],
            [.. Enumerable.Range(0, 300).Select(i => (long)i)],
        ];
        foreach (var offsets in layouts)
            foreach (var (width, channels) in new[] { (4, 19), (1, 64), (6, 1536) })
                foreach (var state in new[] { true, false })
                {
                    var (count, time) = (offsets.Length - 1, (int)offsets[^1]);
                    Check(Inputs(count, time, channels, width, ScalarType.Float32, state: state, packed: true), true, offsets);
                }
    }

    [GpuFact]
    public void Weights_in_float32_beside_16_bits()
    {
        foreach (var dtype in s_dtypes[1..])
        {
            var inputs = Inputs(2, 600, 640, 4, dtype);
            foreach (var name in new[] { "weight", "bias" })
                inputs[name] = inputs[name].to(float32);
            Check(inputs, silu: true, null);
        }
    }

    [GpuFact]
    public void Parts_of_wider_tensors_are_read_where_they_lie()
    {
        using var scope = NewDisposeScope();
        foreach (var (first, channels, wide) in new[] { (512, 768, 1300), (4, 768, 1284), (1, 769, 1281) })
        {
            var inputs = Inputs(2, 400, channels, 4, ScalarType.BFloat16);
            var views = new Dictionary<string, Tensor>(inputs);
            var memory = randn(2, 400, wide, bfloat16, CUDA);
            views["x"] = memory.narrow(2, first, channels);
            views["x"].copy_(inputs["x"]);
            var (expected, _) = Run(inputs, true, null);
            var (actual, _) = Run(views, true, null);
            Assert.True(expected.equal(actual).all().ToBoolean(), $"channels from {first}");
            Check(views, silu: true, null);
        }
    }

    [GpuFact]
    public void Repeats_bit_by_bit_and_neighbours_do_not_leak()
    {
        using var scope = NewDisposeScope();
        long[] offsets = [0, 700, 700, 750, 1900];
        var inputs = Inputs(4, 1900, 320, 4, ScalarType.BFloat16, packed: true);
        var first = Gradients.Of(i => Run(i, true, offsets), inputs);
        Gradients.Same(first, Gradients.Of(i => Run(i, true, offsets), inputs), "again");

        var other = new Dictionary<string, Tensor>(inputs)
        {
            ["x"] = cat([randn(1, 700, 320, bfloat16, CUDA), inputs["x"].narrow(1, 700, 50),
                full(1, 1150, 320, float.NaN, bfloat16, CUDA)], 1),
            ["initialState"] = cat([randn(2, 320, 3).to(CUDA), inputs["initialState"].narrow(0, 2, 1),
                randn(1, 320, 3).to(CUDA)], 0),
        };
        var second = Gradients.Of(i => Run(i, true, offsets), other);
        foreach (var name in new[] { "output", "dx" })
            Assert.True(first[name].narrow(1, 700, 50).equal(second[name].narrow(1, 700, 50)).all().ToBoolean(), name);
        foreach (var name in new[] { "finalState", "dinitialState" })
            Assert.True(first[name][2].equal(second[name][2]).all().ToBoolean(), name);
    }

    [GpuTheory]
    [InlineData(ScalarType.Float32)]
    [InlineData(ScalarType.BFloat16)]
    public void Steps_that_write_over_the_state_give_the_whole(ScalarType dtype)
    {
        using var scope = NewDisposeScope();
        using var noGrad = no_grad();
        foreach (var channels in new[] { 40, 6144 })
        {
            var inputs = Inputs(3, 60, channels, 4, dtype);
            var (whole, wholeState) = Run(inputs, true, null);
            var state = inputs["initialState"].clone();
            var parts = new List<Tensor>();
            foreach (var (start, length) in new[] { (0, 1), (1, 1), (2, 3), (5, 16), (21, 1), (22, 38) })
            {
                var (part, after) = FlaOps.CausalConv1d(inputs["x"].narrow(1, start, length), inputs["weight"], inputs["bias"],
                    "silu", state, true, updateState: true);
                Assert.Same(state, after);
                parts.Add(part);
            }
            Assert.True(cat(parts, 1).equal(whole).all().ToBoolean());
            Assert.True(state.equal(wholeState!).all().ToBoolean());
        }
    }

    [GpuFact]
    public void An_empty_sequence_keeps_its_state_exactly()
    {
        using var scope = NewDisposeScope();
        var state = randn(2, 8, 3).to(CUDA);
        var (_, finalState) = FlaOps.CausalConv1d(randn(1, 5, 8, bfloat16, CUDA), randn(8, 1, 4, bfloat16, CUDA), null, "silu",
            state, true, tensor(new long[] { 0, 0, 5 }));
        Assert.True(finalState![0].equal(state[0]).all().ToBoolean());
    }

    [GpuFact]
    public void The_final_state_alone_has_gradients()
    {
        using var scope = NewDisposeScope();
        var x = randn([1, 2, 4], requires_grad: true, device: CUDA);
        var state = randn([1, 4, 3], requires_grad: true, device: CUDA);
        var (_, finalState) = FlaOps.CausalConv1d(x, randn(4, 4).to(CUDA), null, "silu", state, true);
        (finalState! * arange(1, 4, device: CUDA)).sum().Backward();
        Assert.True(x.grad!.cpu().equal(tensor(new float[] { 2, 3 }).reshape(1, 2, 1).expand(1, 2, 4)).all().ToBoolean());
        Assert.True(state.grad!.cpu().equal(tensor(new float[] { 0, 0, 1 }).expand(1, 4, 3)).all().ToBoolean());
    }

    [GpuFact]
    public void A_wider_one_runs_without_the_kernel()
    {
        using var scope = NewDisposeScope();
        var (strict, message) = (CudaRuntime.Strict, CudaRuntime.Message);
        var inputs = Inputs(2, 50, 6, CausalConvTile.MaxWidth + 1, ScalarType.Float32);
        try
        {
            CudaRuntime.Message = _ => { };
            CudaRuntime.Strict = false;
            Check(inputs, silu: true, null);
            CudaRuntime.Strict = true;
            Assert.Throws<NotSupportedException>(() => Run(inputs, true, null));
        }
        finally
        {
            (CudaRuntime.Strict, CudaRuntime.Message) = (strict, message);
        }
    }

    internal static void Check(Dictionary<string, Tensor> inputs, bool silu, long[]? offsets)
    {
        using var scope = NewDisposeScope();
        Assert.True(CudaRuntime.IsAvailable(0, out var reason), reason);
        var onCpu = inputs.ToDictionary(input => input.Key, input => input.Value.cpu());
        var expected = Gradients.Of(i => NaiveCausalConv.Run(i["x"], i["weight"], i.GetValueOrDefault("bias"), silu,
            i.GetValueOrDefault("initialState"), offsets), onCpu, float64);
        var limit = inputs["x"].dtype == ScalarType.Float32 ? Float32Limit : HalfLimit;
        Gradients.Close(Gradients.Of(i => Run(i, silu, offsets), inputs), expected, limit, limit,
            $"x [{string.Join(", ", inputs["x"].shape)}] {inputs["x"].dtype}, W = {inputs["weight"].shape[1]}, silu {silu}, "
            + $"{inputs.Count} inputs");
    }

    private static (Tensor, Tensor?) Run(IReadOnlyDictionary<string, Tensor> i, bool silu, long[]? offsets) =>
        FlaOps.CausalConv1d(i["x"], i["weight"], i.GetValueOrDefault("bias"), silu ? "silu" : null,
            i.GetValueOrDefault("initialState"), true, offsets is null ? null : tensor(offsets));

    internal static Dictionary<string, Tensor> Inputs(int sequences, int time, int channels, int width, ScalarType dtype,
        bool bias = true, bool state = true, bool packed = false)
    {
        manual_seed(time * 31 + channels);
        var inputs = new Dictionary<string, Tensor>
        {
            ["x"] = Random(packed ? 1 : sequences, time, channels),
            ["weight"] = Random(channels, width),
        };
        if (bias)
            inputs["bias"] = Random(channels);
        if (state)
            inputs["initialState"] = randn(sequences, channels, width - 1).to(CUDA);
        return inputs;

        Tensor Random(params long[] shape) => randn(shape).to(CUDA).to(dtype);
    }
}
