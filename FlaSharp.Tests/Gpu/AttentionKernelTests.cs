using System.Numerics;
using FlaSharp.Kernels.Attention;
using FlaSharp.Kernels.Runtime;
using FlaSharp.Ops;
using FlaSharp.Tests.Reference;
using FlaSharp.Tests.TestSupport;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Gpu;

/// <summary>
/// The CUDA kernels of softmax attention: output, gradients and the logarithms of the sums against float64, in memory that is NaN
/// before (<see cref="PoisonedMemory"/>). <see cref="AttentionCase"/> has the limits.
/// </summary>
public sealed class AttentionKernelTests
{
    private static readonly int[] s_sizes = [8, 16, 32, 40, 59, 64, 96, 111, 128, 160, 192, 224, 256];

    // Empty queries, empty keys, fewer keys than queries, a lone query.
    private static readonly long[] s_queries = [0, 0, 20, 20, 90, 160, 161, 400, 401, 401];
    private static readonly long[] s_keys = [0, 7, 40, 45, 45, 100, 239, 439, 440, 440];

    private static readonly bool[] s_bothKinds = [true, false];
    private static readonly Lazy<int> s_compiled = new(CompileAll);

    public AttentionKernelTests() => Assert.True(!cuda.is_available() || s_compiled.Value > 0);

    public static TheoryData<int> Sizes => [.. s_sizes];

    [GpuTheory]
    [MemberData(nameof(Sizes))]
    public void Head_sizes(int keySize)
    {
        foreach (var causal in new[] { true, false })
        {
            var shape = new AttentionCase { Queries = 113, Keys = 203, K = keySize, Causal = causal };
            shape.Check();
            (shape with { V = OtherSize(keySize) }).Check();
            (shape with { Portable = true }).Check();
        }
    }

    [GpuTheory]
    [InlineData(1, 1)]
    [InlineData(1, 147)]
    [InlineData(1, 2048)]
    [InlineData(113, 203)]
    [InlineData(128, 217)]
    [InlineData(113, 211)]
    [InlineData(108, 256)]
    [InlineData(256, 512)]
    [InlineData(512, 256)]
    [InlineData(1024, 1024)]
    [InlineData(1023, 1024)]
    [InlineData(1024, 1023)]
    [InlineData(2048, 2048)]
    public void Lengths(int queries, int keys)
    {
        foreach (var causal in new[] { true, false })
            foreach (var size in new[] { 64, 128 })
            {
                var batch = queries > 1000 ? 1 : 2;
                new AttentionCase { B = batch, Queries = queries, Keys = keys, K = size, Causal = causal }.Check();
            }
        new AttentionCase { Queries = queries, Keys = keys, K = 96, Window = 100, Dtype = ScalarType.Float16 }.Check();
    }

    public static TheoryData<bool, int> Products =>
        new() { { false, 64 }, { false, 128 }, { false, 256 }, { true, 64 }, { true, 128 } };

    [GpuTheory, MemberData(nameof(Products))]
    public void Options_combine(bool portable, int size)
    {
        foreach (var (queries, keys, causal) in new[] { (200, 200, true), (60, 300, true), (150, 90, true), (90, 200, false) })
            foreach (var window in causal ? new int?[] { null, 1, 50 } : [null])
                foreach (var (softcap, sinks, slopes) in new (double?, bool, bool)[]
                    { (null, false, false), (2.0, false, false), (null, true, false), (null, false, true), (5.0, true, true) })
                    new AttentionCase
                    {
                        Queries = queries,
                        Keys = keys,
                        K = size,
                        Causal = causal,
                        Window = window,
                        Softcap = softcap,
                        HasSinks = sinks,
                        HasSlopes = slopes,
                        Portable = portable,
                    }.Check();
    }

    [GpuTheory, MemberData(nameof(Products))]
    public void Windows(bool portable, int size)
    {
        foreach (var window in new[] { 1, 2, 64, 127, 128, 129, 400 })
            new AttentionCase { Queries = 300, Keys = 500, K = size, Window = window, Portable = portable }.Check();
    }

    [GpuTheory]
    [InlineData(1, 1)]
    [InlineData(3, 3)]
    [InlineData(8, 2)]
    [InlineData(6, 1)]
    [InlineData(16, 1)]
    public void Grouped_heads(int heads, int kvHeads)
    {
        var shape = new AttentionCase { B = 2, H = heads, KvHeads = kvHeads };
        shape.Check();
        (shape with { K = 128, HasSinks = true, HasSlopes = true }).Check();
        (shape with { Portable = true, Dtype = ScalarType.Float16 }).Check();
    }

    [GpuTheory, MemberData(nameof(Products))]
    public void Both_dtypes(bool portable, int size)
    {
        foreach (var dtype in new[] { ScalarType.BFloat16, ScalarType.Float16 })
        {
            var shape = new AttentionCase { Queries = 300, K = size, Dtype = dtype, Portable = portable };
            shape.Check();
            (shape with { Queries = 100, Keys = 217, HasSinks = true }).Check();
        }
    }

    [GpuTheory, MemberData(nameof(Products))]
    public void Packed_sequences_some_of_them_empty(bool portable, int size)
    {
        var packed = new AttentionCase { Queries = 401, K = size, Offsets = s_queries, Portable = portable };
        packed.Check();
        foreach (var shape in new[] { packed, packed with { Keys = 440, KeyOffsets = s_keys } })
        {
            (shape with { H = 4, KvHeads = 2, HasSinks = true, HasSlopes = true }).Check();
            (shape with { Causal = false }).Check();
            (shape with { Window = 33, Softcap = 4 }).Check();
        }
    }

    [GpuTheory, MemberData(nameof(Products))]
    public void Neighbours_in_a_pack_do_not_touch(bool portable, int size)
    {
        using var scope = NewDisposeScope();
        var shape = new AttentionCase { Queries = 300, K = size, Offsets = [0, 70, 190, 300], Portable = portable };
        var inputs = shape.Inputs();
        var others = Array.ConvertAll(inputs, input => input?.clone());
        foreach (var x in others[..3])
        {
            x![.., ..70] = float.NaN;
            x[.., 190..] = float.PositiveInfinity;
        }
        foreach (var window in new int?[] { null, 30 })
        {
            var (expected, actual) = ((shape with { Window = window }).Run(inputs), (shape with { Window = window }).Run(others));
            foreach (var (name, value) in expected)
                Assert.True(GlaCase.AreSame(value[.., 70..190], actual[name][.., 70..190]), $"window {window}: {name}");
        }
    }

    [GpuFact]
    public void Views_are_read_where_they_lie()
    {
        using var scope = NewDisposeScope();
        var shape = new AttentionCase { B = 2, Queries = 150, H = 4, KvHeads = 2, K = 64, V = 48 };
        var dense = shape.Inputs();
        var (q, k, v) = (dense[0]!, dense[1]!, dense[2]!);
        Tensor HeadsFirst(Tensor x) => x.transpose(1, 2).contiguous().transpose(1, 2);
        Tensor PartOf(Tensor x, int before) => nn.functional.pad(x, [before, 5]).narrow(3, before, x.size(3));
        Tensor Aligned(Tensor x, int before) => nn.functional.pad(x, [before, 16]).narrow(3, before, x.size(3));
        Tensor Scattered(Tensor x) => x.transpose(2, 3).contiguous().transpose(2, 3);
        foreach (var portable in new[] { false, true })
        {
            var both = shape with { Portable = portable };
            both.Check([HeadsFirst(q), HeadsFirst(k), HeadsFirst(v), null]);
            both.Check([PartOf(q, 8), PartOf(k, 3), PartOf(v, 1), null]);
            both.Check([Aligned(q, 8), Aligned(k, 16), Aligned(v, 32), null]);
            both.Check([Scattered(q), k, Scattered(v), null]);
            both.Check([q[.., ..1].expand(-1, 150, -1, -1), k, v[.., .., ..1].expand(-1, -1, 2, -1), null]);
        }

        var fused = (shape with { H = 8, V = 64 }).Inputs()[0]!; // the parts of one projection
        (shape with { V = 64 }).Check([fused[.., .., ..4], fused[.., .., 4..6], fused[.., .., 6..], null]);
    }

    [GpuTheory, MemberData(nameof(Products))]
    public void Queries_without_keys_give_zero_and_no_gradient(bool portable, int size)
    {
        using var scope = NewDisposeScope();
        var shape = new AttentionCase { Queries = 300, Keys = 100, K = size, Portable = portable };
        shape.Check();
        (shape with { HasSinks = true }).Check();
        var results = shape.Run(shape.Inputs());
        Assert.Equal(0, results["output"][.., ..200].abs().max().ToSingle());
        Assert.Equal(0, results["q"][.., ..200].abs().max().ToSingle());

        var none = new AttentionCase { Queries = 50, Keys = 60, K = size, Portable = portable, Offsets = [0, 50, 50] };
        var empty = (none with { KeyOffsets = [0, 0, 60] }).Run(none.Inputs());
        Assert.All(empty, result => Assert.Equal(0, result.Value.abs().max().ToSingle()));
    }

    [GpuTheory, MemberData(nameof(Products))]
    public void Extreme_scores(bool portable, int size)
    {
        using var scope = NewDisposeScope();
        var shape = new AttentionCase { Queries = 200, K = size, Portable = portable };
        foreach (var extreme in new[] { shape, shape with { Causal = false }, shape with { HasSinks = true, Window = 40 } })
        {
            var inputs = extreme.Inputs();
            foreach (var x in inputs[..3])
                x!.mul_(100);
            extreme.Check(inputs);
            var wide = Array.ConvertAll(inputs, input => input?.to(float64));
            var expected = new NaiveAttention { Causal = extreme.Causal, Window = extreme.Window }
                .Run(wide[0]!, wide[1]!, wide[2]!, wide[3]);
            Compare.Close(extreme.Forward(inputs).output, expected, 0.03, "output"); // sums of 1e5 are rounded to 0.01
        }

        var half = shape with { Dtype = ScalarType.Float16 };
        var wideScores = half.Inputs();
        wideScores[0]!.mul_(100);
        Assert.All(half.Run(wideScores), result => Assert.True(result.Value.isfinite().all().ToBoolean(), result.Key));
    }

    [GpuFact]
    public void Any_scale()
    {
        foreach (var scale in new[] { 1.0, -0.2, 0.0 })
            foreach (var portable in new[] { false, true })
            {
                new AttentionCase { Scale = scale, Portable = portable }.Check();
                new AttentionCase { Scale = scale, Portable = portable, Softcap = 3, HasSinks = true, K = 128 }.Check();
            }
    }

    [GpuTheory, MemberData(nameof(Products))]
    public void Dropout_repeats_by_its_seed_and_keeps_as_many_as_it_should(bool portable, int size)
    {
        using var scope = NewDisposeScope();
        const double Dropout = 0.3;
        var shape = new AttentionCase
        {
            B = 2,
            Queries = 300,
            Keys = 200,
            H = 4,
            K = size,
            V = 200,
            Causal = false,
            Dropout = Dropout,
            Portable = portable,
        };
        Tensor Zeros(long time) => zeros(2, time, 4, size, dtype: shape.Dtype, device: CUDA);
        Tensor?[] inputs = [Zeros(300), Zeros(200), Unit(200, 2, 4, shape.Dtype), null];
        Tensor Weights(int seed)
        {
            manual_seed(seed);
            return shape.Forward(inputs).output;
        }
        var weights = Weights(1);
        Assert.True(GlaCase.AreSame(weights, Weights(1)));
        var kept = weights > 0;
        Assert.Equal(1 - Dropout, kept.to(float64).mean().ToDouble(), 2); // 480,000 draws: a standard error of 0.0007
        Compare.Close(weights[kept], full_like(weights[kept], 1 / (200 * (1 - Dropout))), 4e-3, "kept weights");

        // Every two of seeds, rows of the batch, heads and shifted tokens agree as chance has it: in 0.58 of the draws.
        var draws = kept.transpose(1, 2); // [B, H, Tq, Tk]
        foreach (var (what, first, second) in new[]
        {
            ("seeds", draws, (Weights(2) > 0).transpose(1, 2)), ("rows", draws[0], draws[1]),
            ("heads", draws[.., 0], draws[.., 1]), Shifted(2, 1), Shifted(2, 8), Shifted(2, 128), Shifted(3, 1), Shifted(3, 8),
            Shifted(3, 64),
        })
            Assert.True(Math.Abs(first.eq(second).to(float64).mean().ToDouble() - 0.58) < 0.01, what);

        (string, Tensor, Tensor) Shifted(int dimension, long by)
        {
            var length = draws.size(dimension) - by;
            return ($"dimension {dimension} by {by}", draws.narrow(dimension, 0, length), draws.narrow(dimension, by, length));
        }
    }

    [GpuFact]
    public void The_mean_over_many_seeds_is_the_output_without_dropout()
    {
        using var scope = NewDisposeScope();
        using var noGrad = no_grad();
        const int Seeds = 200;
        var shape = new AttentionCase { Queries = 128, Causal = false };
        var inputs = shape.Inputs();
        inputs[0]!.mul_(0.1); // nearly equal weights
        var expected = shape.Forward(inputs).output;
        var sum = zeros_like(expected, dtype: float32);
        for (var seed = 0; seed < Seeds; seed++)
        {
            using var inner = NewDisposeScope();
            manual_seed(seed);
            var output = (shape with { Dropout = 0.2 }).Forward(inputs).output;
            sum.add_(output.to(float32));
            Assert.InRange(Compare.RelativeRms(output, expected), 0.4, 0.6); // sqrt(0.2 / 0.8)
        }
        Assert.InRange(Compare.RelativeRms(sum / Seeds, expected), 0, 0.06); // 0.5 / sqrt(200)
    }

    [GpuTheory, MemberData(nameof(Products))]
    public void Dropout_has_the_gradient_of_what_it_kept(bool portable, int size)
    {
        using var scope = NewDisposeScope();
        foreach (var (causal, queries, keys) in new[] { (true, 200, 200), (true, 70, 200), (false, 300, 131) })
        {
            var shape = new AttentionCase
            {
                B = 2,
                Queries = queries,
                Keys = keys,
                H = 4,
                KvHeads = 2,
                K = size,
                Causal = causal,
                Dropout = 0.4,
                Portable = portable,
            };
            var inputs = shape.Inputs();
            inputs[0]!.mul_(0.1); // no weight that is seen rounds to 0
            // The weights that were used, read off with unit vectors as values: the same draws by the same seed.
            manual_seed(11);
            var used = (shape with { V = keys }).Forward([inputs[0], inputs[1], Unit(keys, 2, 2, shape.Dtype), null]).output;
            var keep = (used > 0).transpose(1, 2);
            Func<Tensor?[], Tensor> Plain(ScalarType dtype) => x =>
            {
                var weights = new NaiveAttention { Causal = causal }.Run(x[0]!, x[1]!, Unit(keys, 2, 2, dtype)).transpose(1, 2);
                var values = x[2]!.transpose(1, 2).repeat_interleave(2, 1);
                return matmul(weights * keep / 0.6, values).transpose(1, 2);
            };
            manual_seed(11);
            AttentionCase.Close(shape.Run(inputs), AttentionCase.Gradients(Plain(shape.Dtype), inputs),
                AttentionCase.Gradients(Plain(ScalarType.Float64), Array.ConvertAll(inputs, x => x?.to(float64))),
                $"{shape}");
        }
    }

    [GpuTheory, MemberData(nameof(Products))]
    public void Results_repeat_bit_by_bit(bool portable, int size)
    {
        const int Repeats = 250;
        using var scope = NewDisposeScope();
        var shape = new AttentionCase
        {
            B = 2,
            Queries = 700,
            H = 6,
            KvHeads = 2,
            K = size,
            HasSinks = true,
            Dropout = size == 64 ? 0.1 : 0,
            Portable = portable,
        };
        var inputs = shape.Inputs();
        manual_seed(1);
        var first = shape.Run(inputs);
        for (var run = 1; run < Repeats; run++)
        {
            using var inner = NewDisposeScope();
            manual_seed(1);
            AttentionCase.Same(first, shape.Run(inputs), $"run {run}");
        }
    }

    [GpuFact]
    public void The_gradient_of_a_sum_which_is_one_number_everywhere()
    {
        using var scope = NewDisposeScope();
        var inputs = new AttentionCase().Inputs();
        Tensor[] Of(Func<Tensor, Tensor> loss)
        {
            var leaves = Array.ConvertAll(inputs[..3], input => input!.detach().requires_grad_());
            loss(new AttentionCase().Forward([.. leaves, null]).output).Backward();
            return Array.ConvertAll(leaves, leaf => leaf.grad!);
        }
        foreach (var (expanded, dense) in Of(output => output.sum()).Zip(Of(output => (output * ones_like(output)).sum())))
            Assert.True(GlaCase.AreSame(expanded, dense));
    }

    [GpuFact]
    public void Only_the_gradients_that_are_asked_for()
    {
        using var scope = NewDisposeScope();
        var shape = new AttentionCase { H = 4, KvHeads = 2, HasSinks = true };
        var inputs = shape.Inputs();
        Tensor[] Of(params int[] wanted)
        {
            var leaves = inputs.Select((input, i) => input!.detach().requires_grad_(wanted.Contains(i))).ToArray();
            var (output, logSumExp) = shape.Forward(leaves);
            Assert.False(logSumExp.requires_grad);
            output.sum().Backward();
            Assert.All(leaves.Where((_, i) => !wanted.Contains(i)), leaf => Assert.Null(leaf.grad));
            return [.. wanted.Select(i => leaves[i].grad!)];
        }
        var all = Of(0, 1, 2, 3);
        for (var i = 0; i < all.Length; i++)
            Assert.True(GlaCase.AreSame(all[i], Of(i).Single()), $"gradient {i}");
    }

    [GpuTheory]
    [InlineData(ScalarType.BFloat16)]
    [InlineData(ScalarType.Float32)]
    public void Sinks_of_any_dtype_get_a_gradient_of_theirs(ScalarType dtype)
    {
        using var scope = NewDisposeScope();
        var shape = new AttentionCase { HasSinks = true };
        var inputs = shape.Inputs();
        var expected = shape.Run(inputs)["sinks"];
        inputs[3] = inputs[3]!.to(dtype); // they hold bfloat16 numbers
        var actual = shape.Run(inputs)["sinks"];
        Assert.Equal(dtype, actual.dtype);
        Assert.True(GlaCase.AreSame(expected.to(dtype), actual));
    }

    [GpuFact]
    public void More_heads_than_a_grid_has_rows() => new AttentionCase { B = 8300, Queries = 3, H = 8, K = 16 }.Check();

    [GpuTheory]
    [InlineData(2, 500, 4, 2, 128)]
    [InlineData(8, 4100, 8, 8, 64)] // so many queries that the forward kernel takes more of them together
    public void Libtorch_agrees(int batch, int queries, int heads, int kvHeads, int size)
    {
        using var scope = NewDisposeScope();
        var shape = new AttentionCase { B = batch, Queries = queries, H = heads, KvHeads = kvHeads, K = size };
        var inputs = shape.Inputs();
        var own = shape.Run(inputs);
        var torch = AttentionCase.Gradients(
            x => FlaOps.Attention(x[0]!, x[1]!, x[2]!, backend: AttentionBackend.Torch), inputs);
        foreach (var (name, value) in torch)
            Compare.Close(own[name], value, 0.01, name);
    }

    [GpuFact]
    public void Plans_say_which_backend_and_why()
    {
        using var scope = NewDisposeScope();
        Tensor Queries(long size, ScalarType dtype) => empty(2, 100, 4, size, dtype: dtype, device: CUDA);
        OperationPath Plan(long size, ScalarType dtype, int? window = null)
        {
            var q = Queries(size, dtype);
            return FlaOps.PlanAttention(q, q, q, window: window);
        }
        foreach (var size in new[] { 1, 64, 256 })
            foreach (var dtype in new[] { ScalarType.BFloat16, ScalarType.Float16 })
                Assert.Equal(FlaOps.CudaPath, Plan(size, dtype, window: 9).Path);
        Assert.Equal((FlaOps.TorchPath, "The kernels take bfloat16 and float16. So libtorch's kernel."),
            (Plan(64, ScalarType.Float32).Path, Plan(64, ScalarType.Float32).Reason));
        Assert.Contains("block by block", Plan(64, ScalarType.Float32, window: 9).Reason, StringComparison.Ordinal);
        Assert.Equal(FlaOps.TorchPath, Plan(257, ScalarType.BFloat16).Path);
        Assert.Contains("257", Plan(257, ScalarType.BFloat16).Reason, StringComparison.Ordinal);

        foreach (var (size, dtype, reason) in new[]
            { (64, ScalarType.Float32, "The kernels take bfloat16 and float16."), (257, ScalarType.BFloat16, "257") })
        {
            var q = Queries(size, dtype);
            Assert.Contains(reason, Assert.Throws<NotSupportedException>(
                () => FlaOps.Attention(q, q, q, backend: AttentionBackend.FlaSharp)).Message, StringComparison.Ordinal);
        }
    }

    /// <summary>[B, T, H, T]: each token's value is a unit vector of its own.</summary>
    private static Tensor Unit(long time, long batch, long heads, ScalarType dtype) =>
        eye(time, dtype: dtype, device: CUDA).view(1, time, 1, time).expand(batch, -1, heads, -1);

    /// <summary>The value size beside K = V that a key size is tested with.</summary>
    private static int OtherSize(int size) => s_sizes[(Array.IndexOf(s_sizes, size) + 6) % s_sizes.Length];

    /// <summary>The kernels of the head sizes, on all cores: one by one they would take most of the tests' time.</summary>
    private static int CompileAll()
    {
        var target = GpuDevice.Get(0).Target!;
        (int keys, int values, bool hasOptions)[] sizes =
        [
            .. s_sizes.Select(size => (size, size, false)), .. s_sizes.Select(size => (size, OtherSize(size), false)),
            (64, 64, true), (128, 128, true),
        ];
        var variants =
            from size in sizes
            from usesHopper in s_bothKinds
            where target.IsHopper || !usesHopper
            from variant in Variants(size.keys, size.values, size.hasOptions, usesHopper, target)
            select variant;
        var distinct = variants.Distinct().ToList();
        Parallel.ForEach(distinct, variant => KernelCompiler.Default.Compile(variant, target));
        return distinct.Count;
    }

    private static KernelVariant[] Variants(int keys, int values, bool hasOptions, bool usesHopper, CompilerTarget target)
    {
        const ElementType Element = ElementType.BFloat16;
        var vector = 1 << BitOperations.TrailingZeroCount(keys | values | 8);
        var forward = AttentionTile.Choose(keys, values, Element, hasOptions, usesHopper && values % 8 == 0);
        var backward = usesHopper && vector == 8 && AttentionBackwardTile.FitsHopper(keys, values, hasOptions)
            ? AttentionBackwardTile.Hopper(keys, values, Element, hasOptions)
            : AttentionBackwardTile.Portable(keys, values, Element, hasOptions, vector, target);
        return [forward.Forward(vector), backward.Delta(vector), backward.Main(vector), backward.Queries(vector)];
    }
}
