using FlaSharp.Interop;
using FlaSharp.Layers;
using FlaSharp.Ops;
using FlaSharp.Tests.TestSupport;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Gpu;

/// <summary>
/// The CUDA kernels of the state space duality: outputs, states and all gradients against float64, in memory that is NaN before
/// (<see cref="PoisonedMemory"/>).
/// </summary>
public sealed class SsdKernelTests
{
    [GpuTheory]
    [InlineData(16, 16)]
    [InlineData(64, 16)]
    [InlineData(16, 128)]
    [InlineData(21, 27)]
    [InlineData(100, 60)]
    [InlineData(64, 128)]
    [InlineData(128, 128)]
    [InlineData(256, 256)]
    [InlineData(200, 136)]
    public void Head_and_state_sizes(int headSize, int stateSize) => new SsdCase { P = headSize, N = stateSize, T = 200 }.Check();

    [GpuTheory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(17)]
    [InlineData(63)]
    [InlineData(64)]
    [InlineData(65)]
    [InlineData(127)]
    [InlineData(129)]
    [InlineData(500)]
    public void Lengths(int time)
    {
        new SsdCase { B = 2, T = time, H = 1, P = 32 }.Check();
        new SsdCase { T = time, H = 3, G = 3, HasInitialState = false, Rate = 0.05 }.Check(); // sums of few heads may cancel
    }

    [GpuTheory]
    [InlineData(6, 1)]
    [InlineData(6, 2)]
    [InlineData(5, 5)]
    public void Groups_of_heads(int heads, int groups) => new SsdCase { B = 2, H = heads, G = groups, P = 32, N = 32 }.Check();

    [GpuTheory]
    [InlineData(0.0)]
    [InlineData(0.01)]
    [InlineData(8.0)]
    [InlineData(100.0)]
    public void Decays(double rate) => new SsdCase { T = 300, Rate = rate, HasInitialState = rate < 50 }.Check();

    [GpuFact]
    public void Dtypes()
    {
        new SsdCase { Dtype = ScalarType.Float16 }.Check();
        new SsdCase { Dtype = ScalarType.Float16, StepDtype = ScalarType.Float32, P = 30, N = 33 }.Check();
        new SsdCase { StepDtype = ScalarType.Float32, Softplus = false }.Check();
    }

    [GpuFact]
    public void Gate_direct_path_and_bounds()
    {
        new SsdCase { HasGate = true, DirectPerChannel = true }.Check();
        new SsdCase { HasLogRates = true }.Check();
        new SsdCase { HasGate = true, P = 33, Limit = (0.2, 0.8) }.Check();
    }

    [GpuFact]
    public void Packed_sequences_some_of_them_empty()
    {
        int[] offsets = [0, 0, 20, 20, 90, 400, 401, 401];
        new SsdCase { T = 401, Offsets = offsets }.Check();
        new SsdCase { T = 401, Offsets = offsets, H = 4, G = 2, P = 30, N = 48 }.Check();
    }

    [GpuFact]
    public void Parts_of_a_wider_tensor_are_read_where_they_lie()
    {
        using var scope = NewDisposeScope();
        foreach (var size in new[] { 64, 30 })
        {
            var shape = new SsdCase { B = 2, H = 4, G = 2, P = size, N = size };
            var inputs = shape.Inputs();
            var (x, b, c) = (inputs["x"]!.flatten(2), inputs["b"]!.flatten(2), inputs["c"]!.flatten(2));
            var parts = cat([x, b, c], -1).split([x.size(2), b.size(2), c.size(2)], -1);
            (inputs["x"], inputs["b"], inputs["c"]) =
                (parts[0].unflatten(2, 4, -1), parts[1].unflatten(2, 2, -1), parts[2].unflatten(2, 2, -1));
            inputs["dt"] = cat([inputs["dt"]!, zeros_like(inputs["dt"]!)], -1)[.., .., ..4];
            shape.Check(inputs);
        }
    }

    [GpuFact]
    public void Results_repeat_bit_by_bit()
    {
        using var scope = NewDisposeScope();
        var shape = new SsdCase { B = 2, T = 700, H = 6, G = 2, P = 100 };
        var inputs = shape.Inputs();
        var first = shape.Run(inputs);
        for (var run = 1; run < 5; run++)
            GlaCase.Same(first, shape.Run(inputs), $"run {run}");
    }

    [GpuFact]
    public void More_heads_than_a_grid_has_rows()
    {
        using var scope = NewDisposeScope();
        var shape = new SsdCase { B = 8300, T = 3, H = 8, P = 16, N = 16 };
        var inputs = shape.Inputs();
        var output = shape.Run(inputs)["output"];
        var rows = inputs.ToDictionary(pair => pair.Key,
            pair => pair.Key is "a" or "d" or "dtBias" ? pair.Value : pair.Value?.narrow(0, 8290, 10));
        Compare.Close(output.narrow(0, 8290, 10), (shape with { B = 10 }).Run(rows)["output"], 1e-6, "the last rows");
    }

    [GpuFact]
    public void A_state_carries_a_sequence_on_step_by_step()
    {
        using var scope = NewDisposeScope();
        using var noGrad = no_grad();
        foreach (var shape in new SsdCase[]
                 {
                     new() { B = 2, T = 150, H = 4, G = 2, P = 64, N = 128, HasGate = true },
                     new() { B = 2, T = 90, P = 30, N = 21, DirectPerChannel = true },
                     new() { B = 2, T = 90, P = 64, N = 256 },
                     new() { B = 2, T = 90, P = 64, N = 64, Dtype = ScalarType.Float32 },
                 })
        {
            var inputs = shape.Inputs();
            var (whole, wholeState) = shape.Forward(inputs);
            var first = shape.T - 5;
            var (output, state) = FlaOpsSsd(0, first, inputs["initialState"], false);
            var outputs = new List<Tensor> { output };
            var pointer = TensorPointer.Of(state!);
            foreach (var (start, length) in new[] { (first, 1), (first + 1, 1), (first + 2, 3) })
            {
                var (step, next) = FlaOpsSsd(start, length, state, true);
                outputs.Add(step);
                Assert.Same(state, next);
            }
            Assert.Equal(pointer, TensorPointer.Of(state!));
            Compare.Close(cat(outputs, 1), whole, 4e-3, $"{shape}: output");
            Compare.Close(state!, wholeState!, 4e-3, $"{shape}: state");

            (Tensor, Tensor?) FlaOpsSsd(int start, int length, Tensor? initialState, bool update)
            {
                Tensor Part(string name) => inputs[name]!.narrow(1, start, length);
                return FlaOps.Ssd(Part("x"), Part("dt"), inputs["a"]!, Part("b"), Part("c"), inputs["d"],
                    inputs["z"] is null ? null : Part("z"), inputs["dtBias"], shape.Softplus, shape.Limit, initialState, true,
                    updateState: update);
            }
        }
    }

    [GpuFact]
    public void Only_the_gradients_that_are_asked_for()
    {
        using var scope = NewDisposeScope();
        var shape = new SsdCase { H = 4, G = 2 };
        var inputs = shape.Inputs();
        var all = Of([.. inputs.Keys]);
        foreach (var name in inputs.Keys.Where(name => inputs[name] is not null))
            Assert.True(GlaCase.AreSame(all[name], Of(name).Single().Value), name);

        Dictionary<string, Tensor> Of(params string[] wanted)
        {
            var leaves = inputs.ToDictionary(
                pair => pair.Key, pair => pair.Value?.detach().requires_grad_(wanted.Contains(pair.Key)));
            var (output, finalState) = shape.Forward(leaves);
            (output.sum() + finalState!.sum()).Backward();
            Assert.All(leaves.Where(leaf => !wanted.Contains(leaf.Key)), leaf => Assert.Null(leaf.Value?.grad));
            return leaves.Where(leaf => leaf.Value is not null && wanted.Contains(leaf.Key))
                .ToDictionary(leaf => leaf.Key, leaf => leaf.Value!.grad!);
        }
    }

    [GpuFact]
    public void Neighbours_in_a_pack_do_not_touch()
    {
        using var scope = NewDisposeScope();
        var shape = new SsdCase { T = 300, Offsets = [0, 70, 190, 300] };
        var inputs = shape.Inputs();
        var others = inputs.ToDictionary(pair => pair.Key, pair => pair.Value?.clone());
        foreach (var name in new[] { "x", "dt", "b", "c" })
        {
            others[name]![.., ..70] = float.NaN;
            others[name]![.., 190..] = float.NaN;
        }
        var (expected, actual) = (shape.Run(inputs), shape.Run(others));
        foreach (var name in new[] { "output", "x", "dt", "b", "c" })
            Assert.True(GlaCase.AreSame(expected[name][.., 70..190], actual[name][.., 70..190]), name);
        Assert.True(GlaCase.AreSame(expected["initialState"][1], actual["initialState"][1]), "initialState");
    }

    [GpuFact]
    public void Plans_say_which_kernel_and_why()
    {
        using var scope = NewDisposeScope();
        Assert.Equal(FlaOps.CudaPath, FlaOps.PlanSsd(Input(ScalarType.BFloat16, 500, 64), 128).Path);
        Assert.Contains("step by step", FlaOps.PlanSsd(Input(ScalarType.Float32, 1, 64), 128).Reason, StringComparison.Ordinal);
        var floats = FlaOps.PlanSsd(Input(ScalarType.Float32, 500, 64), 128);
        Assert.Equal(FlaOps.TorchPath, floats.Path);
        Assert.Contains("bfloat16", floats.Reason, StringComparison.Ordinal);
        Assert.Contains("N = 300", FlaOps.PlanSsd(Input(ScalarType.BFloat16, 500, 64), 300).Reason, StringComparison.Ordinal);

        static Tensor Input(ScalarType dtype, long time, long headSize) => empty([1, time, 4, headSize], dtype, CUDA);
    }

    [GpuFact]
    public void A_layer_generates_what_one_pass_gives()
    {
        using var scope = NewDisposeScope();
        using var noGrad = no_grad();
        manual_seed(3);
        using var layer = new Mamba2(128, headDim: 64, stateSize: 64, device: CUDA, dtype: ScalarType.BFloat16);
        var x = randn([2, 100, 128], ScalarType.BFloat16, CUDA);
        var whole = layer.forward(x);
        using var state = new LayerState();
        var parts = new List<Tensor> { layer.forward(x[.., ..90], null, state: state) };
        for (var t = 90; t < 100; t++)
            parts.Add(layer.forward(x[.., t..(t + 1)], null, state: state));
        Compare.Close(cat(parts, 1), whole, 2e-2, "output"); // rounded to bfloat16 between the operations
    }
}
