using FlaSharp.Interop;
using FlaSharp.Kernels.Gla;
using FlaSharp.Kernels.Runtime;
using FlaSharp.Ops;
using FlaSharp.Tests.Reference;
using FlaSharp.Tests.TestSupport;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Gpu;

/// <summary>
/// The CUDA kernels of gated linear attention over chunks: outputs, states and all gradients against float64, in memory that is NaN
/// before (<see cref="PoisonedMemory"/>).
/// </summary>
public sealed class GlaKernelTests
{
    private static readonly int[] s_sizes = [1, 7, 8, 16, 32, 60, 64, 100, 128];
    private static readonly Lazy<int> s_compiled = new(CompileAll);

    public static TheoryData<int> Sizes => [.. s_sizes];

    [GpuTheory]
    [MemberData(nameof(Sizes))]
    public void Head_sizes(int keySize)
    {
        Assert.True(s_compiled.Value > 0);
        foreach (var valueSize in s_sizes)
            new GlaCase { T = 200, K = keySize, V = valueSize }.Check();
    }

    [GpuTheory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(15)]
    [InlineData(16)]
    [InlineData(17)]
    [InlineData(63)]
    [InlineData(64)]
    [InlineData(65)]
    [InlineData(500)]
    [InlineData(1024)]
    [InlineData(2048)]
    public void Lengths(int time)
    {
        new GlaCase { B = 2, T = time, H = 1 }.Check();
        new GlaCase { B = 2, T = time, H = 1, Dtype = ScalarType.Float32 }.Check();
        new GlaCase { T = time, H = 3, HasInitialState = false, Decay = GlaCase.WeakGate }.Check();
    }

    [GpuTheory]
    [InlineData(1, 1)]
    [InlineData(3, 3)]
    [InlineData(8, 8)]
    [InlineData(8, 2)]
    [InlineData(6, 1)]
    public void Heads(int heads, int kvHeads)
    {
        new GlaCase { B = 2, H = heads, KvHeads = kvHeads, K = 32 }.Check();
        new GlaCase { B = 2, H = heads, KvHeads = kvHeads, K = 32, Dtype = ScalarType.Float32 }.Check();
    }

    [GpuTheory]
    [InlineData(GlaCase.ZeroGate)]
    [InlineData(GlaCase.WeakGate)]
    [InlineData(GlaCase.Gate)]
    [InlineData(GlaCase.FarGate)]
    [InlineData(GlaCase.FarShortGate)]
    [InlineData(GlaCase.StrongGate)]
    [InlineData(GlaCase.StrongerGate)]
    [InlineData(GlaCase.SomeResets)]
    [InlineData(GlaCase.AllResets)]
    [InlineData(GlaCase.MixedGate)]
    [InlineData(GlaCase.AlternatingGate)]
    public void Decays(string decay)
    {
        new GlaCase { T = 300, Decay = decay, K = 128, V = 128 }.Check();
        new GlaCase { T = 300, Decay = decay, K = 20, V = 33, GateDtype = ScalarType.Float32 }.Check();
        new GlaCase { T = 300, Decay = decay, Dtype = ScalarType.Float16, GateDtype = ScalarType.Float32 }.Check();
        new GlaCase { T = 300, Decay = decay, Dtype = ScalarType.Float32, K = 128, V = 128 }.Check();
        new GlaCase { T = 300, Decay = decay, Dtype = ScalarType.Float32, K = 20, V = 33 }.Check();
    }

    [GpuTheory]
    [InlineData(ScalarType.BFloat16, ScalarType.Float32)]
    [InlineData(ScalarType.Float16, ScalarType.Float16)]
    [InlineData(ScalarType.Float16, ScalarType.Float32)]
    [InlineData(ScalarType.Float32, ScalarType.Float32)]
    public void Dtypes(ScalarType dtype, ScalarType gate)
    {
        foreach (var (keySize, valueSize) in new[] { (64, 64), (128, 64), (16, 128), (60, 100), (7, 8) })
            new GlaCase { Dtype = dtype, GateDtype = gate, K = keySize, V = valueSize }.Check();
    }

    [GpuTheory]
    [InlineData(false)]
    [InlineData(true)]
    public void Packed_sequences_some_of_them_empty(bool reverse)
    {
        int[] offsets = [0, 0, 20, 20, 90, 400, 401, 401];
        foreach (var dtype in new[] { ScalarType.BFloat16, ScalarType.Float32 })
        {
            var packed = new GlaCase { T = 401, Offsets = offsets, Reverse = reverse, Dtype = dtype };
            packed.Check();
            (packed with { H = 4, KvHeads = 2, K = 30, Decay = GlaCase.SomeResets }).Check();
        }
    }

    /// <summary>Forward's products of matrices are Hopper's where there are some, or the portable ones.</summary>
    [GpuTheory]
    [InlineData(false)]
    [InlineData(true)]
    public void Both_kinds_of_products(bool portable)
    {
        foreach (var (keySize, valueSize) in new[] { (64, 64), (64, 128), (128, 64), (128, 128), (61, 107), (256, 64), (256, 256) })
            new GlaCase { T = 201, K = keySize, V = valueSize, Portable = portable }.Check();
        foreach (var size in new[] { 64, 128 })
        {
            var shape = new GlaCase { T = 401, K = size, V = size, H = 4, KvHeads = 2, Portable = portable };
            (shape with { Offsets = [0, 0, 20, 20, 90, 400, 401, 401], Reverse = true }).Check();
            (shape with { Dtype = ScalarType.Float16, GateDtype = ScalarType.Float32, HasInitialState = false }).Check();
            foreach (var decay in new[] { GlaCase.WeakGate, GlaCase.FarShortGate, GlaCase.StrongGate, GlaCase.StrongerGate,
                GlaCase.SomeResets, GlaCase.AllResets, GlaCase.AlternatingGate })
                (shape with { Decay = decay }).Check();
        }
    }

    [GpuTheory]
    [InlineData(false)]
    [InlineData(true)]
    public void A_value_that_is_not_finite_stays_in_its_channel_and_reaches_no_token_long_before_it(bool portable)
    {
        const int Token = 45, Channel = 7;
        foreach (var size in new[] { 64, 128 })
        {
            using var scope = NewDisposeScope();
            var shape = new GlaCase { T = 201, K = size, V = size, Portable = portable };
            var inputs = shape.Inputs();
            var others = Array.ConvertAll(inputs, input => input!.clone());
            others[2]![.., Token, .., Channel] = float.NaN;
            var (expected, actual) = (shape.Forward(LinearAttentionMode.FusedChunk, inputs).Item1,
                shape.Forward(LinearAttentionMode.FusedChunk, others).Item1);
            var exact = GpuDevice.Get(0).Target!.IsHopper && !portable;
            var before = exact ? Token : Token / 16 * 16;
            Compare.Close(actual[.., ..before], expected[.., ..before], 4e-3, "before");
            Assert.True(actual[.., Token.., .., Channel].isnan().all().ToBoolean());
            actual[.., .., .., Channel] = expected[.., .., .., Channel];
            Compare.Close(actual, expected, 4e-3, "other channels");
        }
    }

    [GpuFact]
    public void Hopper_takes_its_own_products()
    {
        Assert.SkipUnless(GpuDevice.Get(0).Target!.IsHopper, "The GPU is no Hopper.");
        using var scope = NewDisposeScope();
        var x = new GlaCase { T = 200, H = 4, K = 128, V = 128 }.Inputs();
        Assert.Contains("wgmma", FlaOps.PlanGla(x[0]!).Reason, StringComparison.Ordinal);
        Assert.Contains("mma.sync", FlaOps.PlanGla(x[0]![.., .., .., ..32]).Reason, StringComparison.Ordinal);
    }

    [GpuFact]
    public void Reversed() => new GlaCase { B = 2, T = 333, Reverse = true }.Check();

    [GpuTheory]
    [InlineData(ScalarType.BFloat16)]
    [InlineData(ScalarType.Float32)]
    public void Views_are_read_where_they_lie(ScalarType dtype)
    {
        using var scope = NewDisposeScope();
        var shape = new GlaCase { B = 2, T = 150, H = 4, KvHeads = 2, K = 32, V = 48, Dtype = dtype };
        var dense = shape.Inputs();
        var (q, k, v, g) = (dense[0]!, dense[1]!, dense[2]!, dense[3]!);
        Tensor HeadsFirst(Tensor x) => x.transpose(1, 2).contiguous().transpose(1, 2);
        Tensor PartOf(Tensor x, int before) => nn.functional.pad(x, [before, 5]).narrow(3, before, x.size(3));
        Tensor Scattered(Tensor x) => x.transpose(2, 3).contiguous().transpose(2, 3);
        shape.Check([HeadsFirst(q), HeadsFirst(k), HeadsFirst(v), HeadsFirst(g), dense[4]]);
        shape.Check([PartOf(q, 8), PartOf(k, 16), PartOf(v, 3), PartOf(g, 1), dense[4]]);
        shape.Check([Scattered(q), k, Scattered(v), g, dense[4]!.transpose(2, 3).contiguous().transpose(2, 3)]);
        shape.Check([q[.., ..1].expand(-1, 150, -1, -1), k, v, g[.., .., ..1].expand(-1, -1, 2, -1), dense[4]]);
    }

    [GpuFact]
    public void The_gradient_of_a_sum_which_is_one_number_everywhere()
    {
        using var scope = NewDisposeScope();
        var inputs = new GlaCase().Inputs();
        Tensor[] Of(Func<Tensor, Tensor> loss)
        {
            var leaves = Array.ConvertAll(inputs, input => input!.detach().requires_grad_());
            loss(new GlaCase().Forward(LinearAttentionMode.FusedChunk, leaves).Item1).Backward();
            return Array.ConvertAll(leaves, leaf => leaf.grad!);
        }
        foreach (var (expanded, dense) in Of(output => output.sum()).Zip(Of(output => (output * ones_like(output)).sum())))
            Assert.True(GlaCase.AreSame(expanded, dense));
    }

    [GpuFact]
    public void Only_the_gradients_that_are_asked_for()
    {
        using var scope = NewDisposeScope();
        var shape = new GlaCase { H = 4, KvHeads = 2 };
        var inputs = shape.Inputs();
        Tensor[] Of(params int[] wanted)
        {
            var leaves = inputs.Select((input, i) => input!.detach().requires_grad_(wanted.Contains(i))).ToArray();
            var (output, finalState) = shape.Forward(LinearAttentionMode.FusedChunk, leaves);
            (output.sum() + finalState!.sum()).Backward();
            Assert.All(leaves.Where((_, i) => !wanted.Contains(i)), leaf => Assert.Null(leaf.grad));
            return [.. wanted.Select(i => leaves[i].grad!)];
        }
        var all = Of(0, 1, 2, 3, 4);
        for (var i = 0; i < all.Length; i++)
            Assert.True(GlaCase.AreSame(all[i], Of(i).Single()), $"gradient {i}");
    }

    [GpuTheory]
    [InlineData(ScalarType.BFloat16)]
    [InlineData(ScalarType.Float32)]
    public void Results_repeat_bit_by_bit(ScalarType dtype)
    {
        using var scope = NewDisposeScope();
        var shape = new GlaCase
        {
            B = 2,
            T = 700,
            H = 6,
            KvHeads = 2,
            K = 100,
            V = 64,
            Decay = GlaCase.SomeResets,
            Dtype = dtype,
        };
        var inputs = shape.Inputs();
        foreach (var mode in new[] { LinearAttentionMode.FusedChunk, LinearAttentionMode.Chunk })
        {
            var first = shape.Run(mode, inputs);
            for (var run = 1; run < 5; run++)
                GlaCase.Same(first, shape.Run(mode, inputs), $"{mode}, run {run}");
        }
    }

    [GpuFact]
    public void More_heads_than_a_grid_has_rows() => new GlaCase { B = 8300, T = 3, H = 8, K = 16, V = 16 }.Check();

    [GpuFact]
    public void All_modes_agree()
    {
        using var scope = NewDisposeScope();
        var shape = new GlaCase { T = 2048, H = 2, K = 64, V = 128 };
        var inputs = shape.Inputs();
        var (expected, _) = shape.Forward(LinearAttentionMode.FusedRecurrent, inputs);
        foreach (var mode in new[] { LinearAttentionMode.Auto, LinearAttentionMode.FusedChunk, LinearAttentionMode.Chunk })
            Compare.Close(shape.Forward(mode, inputs).Item1, expected, 5e-3, mode.ToString());
    }

    [GpuFact]
    public void A_long_sequence_is_cut_by_itself()
    {
        var shape = new GlaCase { T = 2048, H = 1 };
        Assert.True(GlaSegments.For(1, 32, GpuDevice.Get(0).Info.MultiprocessorCount).Count > 1);
        using var scope = NewDisposeScope();
        var inputs = shape.Inputs();
        var (expected, expectedState) = shape.Forward(LinearAttentionMode.FusedChunk, inputs);
        var (output, state) = FlaOps.Gla(inputs[0]!, inputs[1]!, inputs[2]!, inputs[3]!, LinearAttentionMode.Chunk,
            initialState: inputs[4], outputFinalState: true);
        Compare.Close(output, expected, 4e-3, "output");
        Compare.Close(state!, expectedState!, 4e-3, "final state");
    }

    [GpuFact]
    public void A_state_carries_a_sequence_on()
    {
        using var scope = NewDisposeScope();
        var shape = new GlaCase { B = 2, T = 200, K = 40, V = 64, Decay = GlaCase.WeakGate };
        var x = shape.Inputs();
        var (whole, wholeState) = shape.Forward(LinearAttentionMode.FusedChunk, x);
        var (first, state) = FlaOps.Gla(Part(0, 0, 131), Part(1, 0, 131), Part(2, 0, 131), Part(3, 0, 131),
            LinearAttentionMode.FusedChunk, initialState: x[4], outputFinalState: true);
        var (second, lastState) = FlaOps.Gla(Part(0, 131, 69), Part(1, 131, 69), Part(2, 131, 69), Part(3, 131, 69),
            LinearAttentionMode.FusedChunk, initialState: state, outputFinalState: true);
        Compare.Close(cat([first, second], 1), whole, 4e-3, "output");
        Compare.Close(lastState!, wholeState!, 4e-3, "final state");

        Tensor Part(int input, int start, int length) => x[input]!.narrow(1, start, length);
    }

    [GpuFact]
    public void A_state_is_updated_in_place()
    {
        using var scope = NewDisposeScope();
        using var noGrad = no_grad();
        foreach (var shape in new GlaCase[]
        {
            new() { B = 3, T = 1, H = 4, KvHeads = 2, K = 128, V = 128 },
            new() { T = 1, K = 7, V = 33, Dtype = ScalarType.Float32 },
            new() { T = 90, K = 64, V = 200, Offsets = [0, 1, 1, 90] },
            new() { T = 200, Reverse = true },
        })
            foreach (var mode in new[] { LinearAttentionMode.FusedRecurrent, LinearAttentionMode.FusedChunk })
            {
                var x = shape.Inputs();
                var (expected, expectedState) = shape.Forward(mode, x);
                var state = x[4]!.clone();
                var pointer = TensorPointer.Of(state);
                var (output, finalState) = FlaOps.Gla(x[0]!, x[1]!, x[2]!, x[3]!, mode, initialState: state,
                    outputFinalState: true, cuSeqlens: shape.Offsets is null ? null : tensor(shape.Offsets),
                    reverse: shape.Reverse, updateState: true);
                Assert.Same(state, finalState);
                Assert.Equal(pointer, TensorPointer.Of(state));
                Assert.True(GlaCase.AreSame(output, expected), $"{shape} {mode}: output");
                Assert.True(GlaCase.AreSame(state, expectedState!), $"{shape} {mode}: state");
            }
    }

    [GpuFact]
    public void Neighbours_in_a_pack_do_not_touch()
    {
        using var scope = NewDisposeScope();
        var shape = new GlaCase { T = 300, Offsets = [0, 70, 190, 300] };
        var inputs = shape.Inputs();
        var others = Array.ConvertAll(inputs, input => input!.clone());
        foreach (var x in others[..4])
        {
            x[.., ..70] = float.NaN;
            x[.., 190..] = float.NaN;
        }
        foreach (var mode in new[] { LinearAttentionMode.FusedChunk, LinearAttentionMode.Chunk })
        {
            var (expected, actual) = (shape.Run(mode, inputs), shape.Run(mode, others));
            foreach (var name in new[] { "output", "dq", "dk", "dv", "dg" })
                Assert.True(GlaCase.AreSame(expected[name][.., 70..190], actual[name][.., 70..190]), $"{mode}: {name}");
            Assert.True(GlaCase.AreSame(expected["finalState"][1], actual["finalState"][1]), $"{mode}: finalState");
            Assert.True(GlaCase.AreSame(expected["dInitialState"][1], actual["dInitialState"][1]), $"{mode}: dInitialState");
        }
    }

    [GpuFact]
    public void Plans_say_which_kernel_and_why()
    {
        using var scope = NewDisposeScope();
        var (wide, narrow) = (Queries(8, 1000, 64, 64), Queries(1, 5000, 2, 64));
        Assert.Equal((LinearAttentionMode.FusedChunk, FlaOps.CudaPath), Taken(FlaOps.PlanGla(wide)));
        Assert.Equal((LinearAttentionMode.Chunk, FlaOps.CudaPath), Taken(FlaOps.PlanGla(narrow)));
        Assert.Equal((LinearAttentionMode.FusedRecurrent, FlaOps.CudaPath), Taken(FlaOps.PlanGla(Queries(8, 16, 4, 64))));
        Assert.Equal((LinearAttentionMode.Chunk, FlaOps.CudaPath), Taken(FlaOps.PlanGla(narrow.to(float32))));
        Assert.Equal((LinearAttentionMode.FusedRecurrent, FlaOps.CudaPath),
            Taken(FlaOps.PlanGla(Queries(8, 32, 4, 64).to(float32))));
        Assert.Equal((LinearAttentionMode.FusedChunk, FlaOps.CudaPath),
            Taken(FlaOps.PlanGla(narrow, LinearAttentionMode.FusedChunk)));
        Assert.Contains("multiprocessors", FlaOps.PlanGla(wide).Reason, StringComparison.Ordinal);

        var inParts = FlaOps.PlanGla(Queries(1, 100, 200, 300));
        Assert.Equal((LinearAttentionMode.FusedChunk, FlaOps.CudaPath), Taken(inParts));
        Assert.Contains("K = 300", inParts.Reason, StringComparison.Ordinal);

        static Tensor Queries(params long[] sizes) => empty(sizes, dtype: ScalarType.BFloat16, device: CUDA);
        static (LinearAttentionMode, string) Taken(ModeChoice choice) => (choice.Mode, choice.Path);
    }

    [GpuTheory]
    [InlineData(256, 256)]
    [InlineData(256, 128)]
    [InlineData(200, 64)]
    [InlineData(256, 32)]
    [InlineData(64, 512)]
    [InlineData(300, 40)]
    [InlineData(512, 512)]
    public void Wide_heads(int keySize, int valueSize)
    {
        new GlaCase { T = 200, K = keySize, V = valueSize }.Check();
        new GlaCase { T = 200, K = keySize, V = valueSize, Dtype = ScalarType.Float32 }.Check();
    }

    /// <summary>The kernels of the head sizes, on all cores: one by one they would take most of the tests' time.</summary>
    private static int CompileAll()
    {
        var target = GpuDevice.Get(0).Target!;
        var variants =
            from keySize in s_sizes
            from valueSize in s_sizes
            let vector = Math.Min(8, (keySize | valueSize) & -(keySize | valueSize))
            let tile = GlaChunkTile.Choose(keySize, valueSize, ElementType.BFloat16, ElementType.BFloat16, true, target, out _)
            from variant in new[]
            {
                tile.Forward(vector), tile.State(vector, backward: false), tile.State(vector, backward: true),
                tile.Backward(vector), tile.BackwardPairs(vector),
            }
            select variant;
        var distinct = variants.Distinct().ToList();
        Parallel.ForEach(distinct, variant => KernelCompiler.Default.Compile(variant, target));
        return distinct.Count;
    }
}
