using FlaSharp.Kernels.Runtime;
using FlaSharp.Kernels.SelectiveScan;
using FlaSharp.Ops;
using FlaSharp.Tests.Reference;
using FlaSharp.Tests.TestSupport;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Gpu;

/// <summary>
/// The CUDA kernels of the selective scan: outputs, states and all gradients against float64, in memory that is NaN before
/// (<see cref="PoisonedMemory"/>).
/// </summary>
public sealed class SelectiveScanKernelTests
{
    private static readonly string[] s_halfInputs = ["u", "delta", "b", "c", "z"];

    [GpuTheory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(7)]
    [InlineData(8)]
    [InlineData(31)]
    [InlineData(32)]
    [InlineData(33)]
    [InlineData(65)]
    [InlineData(500)]
    [InlineData(1024)]
    public void Lengths(int time)
    {
        foreach (var segments in new[] { 1, 2 })
        {
            Check(Inputs(2, time, 64, 16), segments: segments);
            Check(Inputs(1, time, 33, 16), segments: segments, dtype: ScalarType.BFloat16);
        }
    }

    [GpuTheory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(7)]
    [InlineData(8)]
    [InlineData(15)]
    [InlineData(16)]
    [InlineData(17)]
    [InlineData(24)]
    [InlineData(64)]
    [InlineData(100)]
    [InlineData(128)]
    [InlineData(256)]
    public void State_sizes(int states)
    {
        foreach (var channels in new[] { 1, 8, 40, 65 })
        {
            Check(Inputs(2, 70, channels, states));
            Check(Inputs(1, 40, channels, states), dtype: ScalarType.BFloat16);
        }
    }

    [GpuTheory]
    [InlineData(48, 3)]
    [InlineData(6, 6)]
    [InlineData(66, 2)]
    [InlineData(1536, 1)]
    [InlineData(4096, 8)]
    public void Groups(int channels, int groups)
    {
        Check(Inputs(2, 50, channels, 16, groups));
        Check(Inputs(2, 50, channels, 16, groups), dtype: ScalarType.Float16);
    }

    [GpuTheory]
    [InlineData("")]
    [InlineData("d")]
    [InlineData("z")]
    [InlineData("deltaBias")]
    [InlineData("initialState")]
    [InlineData("z deltaBias initialState")]
    public void Optional_inputs_may_be_absent(string present)
    {
        foreach (var softplus in new[] { true, false })
        {
            var inputs = Inputs(2, 40, 24, 16);
            foreach (var name in new[] { "d", "z", "deltaBias", "initialState" })
                if (!present.Split(' ').Contains(name))
                    inputs.Remove(name);
            if (!softplus)
                inputs["delta"] = inputs["delta"].abs() * 0.3;
            if (!softplus && inputs.TryGetValue("deltaBias", out var bias))
                inputs["deltaBias"] = bias.abs() * 0.3;
            Check(inputs, softplus);
            Check(inputs, softplus, dtype: ScalarType.BFloat16);
        }
    }

    [GpuFact]
    public void More_blocks_than_have_room_with_long_tiles() =>
        Check(Inputs(140, 40, 64, 16), dtype: ScalarType.BFloat16);

    [GpuFact]
    public void Packed_sequences()
    {
        foreach (var segments in new[] { 1, 2, 3 })
            foreach (var states in new[] { 16, 20 })
            {
                Check(Inputs(8, 400, 33, states, 3, packed: true), true, [0, 0, 1, 3, 67, 67, 130, 400, 400], segments);
                Check(Inputs(8, 400, 64, states, packed: true), true, [0, 0, 1, 3, 67, 67, 130, 400, 400], segments,
                    ScalarType.BFloat16);
            }
    }

    [GpuTheory]
    [InlineData(2)]
    [InlineData(5)]
    [InlineData(15)]
    [InlineData(16)]
    public void Segments(int segments)
    {
        foreach (var states in new[] { 16, 40 })
        {
            Check(Inputs(2, 500, 40, states), segments: segments);
            Check(Inputs(1, 500, 40, states), segments: segments, dtype: ScalarType.BFloat16);
        }
    }

    [GpuTheory]
    [InlineData(30, 0)]
    [InlineData(1000, 0)]
    [InlineData(1, -15)]
    public void Strong_and_tiny_steps(double strength, double shift)
    {
        var inputs = Inputs(1, 100, 32, 16);
        inputs["delta"] = inputs["delta"] * strength + shift;
        Check(inputs);
        Check(inputs, segments: 2);
    }

    [GpuFact]
    public void Strides_do_not_matter()
    {
        using var scope = NewDisposeScope();
        var inputs = OnGpu(Inputs(2, 40, 32, 16, 2), ScalarType.BFloat16);
        var expected = Gradients.Of(i => Run(i, true, null, null), inputs);
        foreach (var first in new[] { 8, 9, 32 }) // the second one is not aligned
        {
            var views = inputs.ToDictionary(i => i.Key, i => i.Key is "u" or "z" or "b" or "c"
                ? cat([i.Value, i.Value, i.Value], -1).narrow(i.Value.dim() - 1, first, i.Value.shape[^1]).copy_(i.Value)
                : i.Value);
            views["delta"] = inputs["delta"].transpose(0, 2).contiguous().transpose(0, 2);
            Gradients.Close(Gradients.Of(i => Run(i, true, null, null), views), expected, 1e-6, 1e-6, $"from {first}");
        }
    }

    [GpuFact]
    public void Runs_repeat_bitwise_and_packed_neighbours_do_not_leak()
    {
        using var scope = NewDisposeScope();
        long[] offsets = [0, 70, 70, 75, 590];
        foreach (var segments in new int?[] { null, 4 })
        {
            var inputs = OnGpu(Inputs(4, 590, 200, 16, packed: true), ScalarType.BFloat16);
            var first = Gradients.Of(i => Run(i, true, offsets, segments), inputs);
            for (var run = 0; run < 10; run++)
                Gradients.Same(first, Gradients.Of(i => Run(i, true, offsets, segments), inputs), $"{segments} segments");

            // The third sequence has the same bits whatever the others hold.
            var other = new Dictionary<string, Tensor>(inputs);
            foreach (var name in s_halfInputs)
            {
                var value = inputs[name].clone();
                value.narrow(1, 0, 70).normal_();
                value.narrow(1, 75, 515).fill_(float.NaN);
                other[name] = value;
            }
            var second = Gradients.Of(i => Run(i, true, offsets, segments), other);
            foreach (var name in new[] { "output", "du", "ddelta", "db", "dc", "dz" })
                Assert.True(first[name].narrow(1, 70, 5).equal(second[name].narrow(1, 70, 5)).all().ToBoolean(), name);
            foreach (var name in new[] { "finalState", "dinitialState" })
                Assert.True(first[name][2].equal(second[name][2]).all().ToBoolean(), name);
            Assert.True(first["finalState"][1].equal(inputs["initialState"][1].cpu()).all().ToBoolean(), "empty sequence");
        }
    }

    [GpuTheory]
    [InlineData(16)]
    [InlineData(40)]
    public void Prefill_and_steps_in_place_give_the_whole(int states)
    {
        using var scope = NewDisposeScope();
        using var noGrad = no_grad();
        var inputs = OnGpu(Inputs(3, 60, 48, states), ScalarType.BFloat16);
        var (whole, wholeState) = Operation(inputs, inputs["initialState"]);
        var state = inputs["initialState"].clone();
        var parts = new List<Tensor>();
        for (int t = 0, next; t < 60; t = next)
        {
            next = t < 40 ? 40 : t + 1 + t % 3;
            next = Math.Min(next, 60);
            var (output, final) = Operation(inputs.ToDictionary(i => i.Key, i => s_halfInputs.Contains(i.Key)
                ? i.Value.narrow(1, t, next - t) : i.Value), state, updateState: true);
            Assert.Same(state, final);
            parts.Add(output);
        }
        Compare.Close(cat(parts, 1), whole, 1e-6, "output");
        Compare.Close(state, wholeState!, 1e-6, "state");
    }

    [GpuFact]
    public void A_long_sequence_in_segments_gives_what_it_gives_in_one()
    {
        using var scope = NewDisposeScope();
        var inputs = OnGpu(Inputs(1, 65_536, 64, 16), ScalarType.Float32);
        var whole = Gradients.Of(i => Run(i, true, null, 1), inputs);
        Gradients.Close(Gradients.Of(i => Run(i, true, null, null), inputs), whole, 1e-5, 2e-5, "65,536 steps");
    }

    [GpuTheory]
    [InlineData(100)]
    [InlineData(20_000)]
    public void Rates_may_be_logarithms(int time)
    {
        using var scope = NewDisposeScope();
        var inputs = OnGpu(Inputs(1, time, 64, 20), ScalarType.Float32);
        (Tensor, Tensor?) With(IReadOnlyDictionary<string, Tensor> i, Tensor a, bool isLog) => FlaOps.SelectiveScan(
            i["u"], i["delta"], a, i["b"], i["c"], i["d"], i["z"], i["deltaBias"], deltaSoftplus: true, i["initialState"],
            outputFinalState: true, aIsLog: isLog);
        Gradients.Close(Gradients.Of(i => With(i, (-i["a"]).log(), true), inputs),
            Gradients.Of(i => With(i, i["a"], false), inputs), 1e-5, 2e-5, $"{time} steps");
    }

    [GpuFact]
    public void The_operation_takes_the_kernel()
    {
        Assert.True(CudaRuntime.IsAvailable(0, out var reason), reason);
        using var scope = NewDisposeScope();
        var plan = FlaOps.PlanSelectiveScan(empty([1, 1000, 64], device: CUDA));
        Assert.Equal(FlaOps.CudaPath, plan.Path);
        Assert.Contains("narrow", plan.Reason, StringComparison.Ordinal);
    }

    internal static Dictionary<string, Tensor> Inputs(
        int sequences, int time, int channels, int states, int groups = 1, bool packed = false)
    {
        manual_seed(7);
        var batch = packed ? 1 : sequences;
        return new Dictionary<string, Tensor>
        {
            ["u"] = randn(batch, time, channels),
            ["delta"] = randn(batch, time, channels) - 1,
            ["a"] = -randn(channels, states).exp(),
            ["b"] = randn(batch, time, groups, states),
            ["c"] = randn(batch, time, groups, states),
            ["d"] = randn(channels),
            ["z"] = randn(batch, time, channels),
            ["deltaBias"] = randn(channels),
            ["initialState"] = randn(sequences, channels, states),
        };
    }

    private static Dictionary<string, Tensor> OnGpu(Dictionary<string, Tensor> inputs, ScalarType dtype) =>
        inputs.ToDictionary(i => i.Key, i => s_halfInputs.Contains(i.Key) ? i.Value.to(dtype, CUDA) : i.Value.cuda());

    internal static void Check(Dictionary<string, Tensor> inputs, bool softplus = true, long[]? offsets = null,
        int? segments = null, ScalarType dtype = ScalarType.Float32)
    {
        using var scope = NewDisposeScope();
        var rounded = inputs.ToDictionary(i => i.Key, i => s_halfInputs.Contains(i.Key) ? i.Value.to(dtype) : i.Value);
        var expected = Gradients.Of(
            i => NaiveSelectiveScan.Run(i["u"], i["delta"], i["a"], i["b"], i["c"], i.GetValueOrDefault("d"),
                i.GetValueOrDefault("z"), i.GetValueOrDefault("deltaBias"), softplus, i.GetValueOrDefault("initialState"),
                offsets),
            rounded, float64);
        var (limit, gradientLimit) = dtype == ScalarType.Float32 ? (1e-5, 2e-5) : (4e-3, 1e-2); // dB and dC sum up what cancels
        var actual = Gradients.Of(i => Run(i, softplus, offsets, segments), rounded);
        var what = $"u [{string.Join(", ", inputs["u"].shape)}], b [{string.Join(", ", inputs["b"].shape)}], {dtype}, "
            + $"{segments} segments";
        if (dtype != ScalarType.Float32 && expected.Remove("ddeltaBias", out var bias))
        {
            // A sum over steps, of which nearly nothing may be left: its error is that of the terms.
            var terms = expected["ddelta"].pow(2).sum([0, 1]).mean().sqrt().ToDouble();
            var error = (actual["ddeltaBias"].to(float64) - bias).pow(2).mean().sqrt().ToDouble();
            Assert.True(error <= limit * terms, $"{what}: ddeltaBias: error {error:E2} of sums of {terms:E2}.");
        }
        Gradients.Close(actual, expected, limit, gradientLimit, what);
    }

    /// <summary>The CUDA function on inputs of any device, narrow with an even number of segments; results on the CPU.</summary>
    private static (Tensor output, Tensor? finalState) Run(
        IReadOnlyDictionary<string, Tensor> inputs, bool softplus, long[]? offsets, int? segments)
    {
        var (u, delta, b, c) = (inputs["u"].cuda(), inputs["delta"].cuda(), inputs["b"].cuda(), inputs["c"].cuda());
        Tensor? Optional(string name) => inputs.GetValueOrDefault(name)?.cuda();
        var sequences = Sequences.Of(u.size(0), u.size(1), offsets is null ? null : tensor(offsets));
        SelectiveScanCut? cut = segments is { } count
            ? SelectiveScanCut.Of(count % 2 == 0, count, sequences.MaxLength, parts: 1 + count % 3)
            : null;
        var outputs = new SelectiveScanCudaFunction(sequences, softplus, outputFinalState: true, cut: cut).Run(
            u, delta, inputs["a"].cuda(), b, c, Optional("d"), Optional("z"), Optional("deltaBias"), Optional("initialState"));
        return (outputs[0]!.cpu(), outputs[1]!.cpu());
    }

    private static (Tensor output, Tensor? finalState) Operation(
        Dictionary<string, Tensor> i, Tensor state, bool updateState = false) =>
        FlaOps.SelectiveScan(i["u"], i["delta"], i["a"], i["b"], i["c"], i["d"], i["z"], i["deltaBias"], deltaSoftplus: true,
            state, outputFinalState: true, updateState: updateState);
}
