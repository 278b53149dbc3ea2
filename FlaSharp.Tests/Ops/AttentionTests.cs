using CsCheck;
using FlaSharp.Ops;
using FlaSharp.Tests.Reference;
using FlaSharp.Tests.TestSupport;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Ops;

public sealed class AttentionTests
{
    private const double OutputLimit = 2e-6, GradientLimit = 1e-5; // float32; measured: 5e-7 and 2e-6

    private static readonly float[] s_slopes = [0.5f, 0.125f, 0f, 1f];

    private static Tensor[] Inputs(long batch, long queries, long keys, long heads, long groups, long keySize, long valueSize) =>
        [randn(batch, queries, heads, keySize), randn(batch, keys, groups, keySize), randn(batch, keys, groups, valueSize)];

    [Theory]
    [InlineData(113, 203)]
    [InlineData(128, 217)]
    [InlineData(1, 239)]
    [InlineData(108, 256)]
    [InlineData(64, 64)]
    [InlineData(1, 1)]
    [InlineData(203, 113)] // the first 90 queries see no key
    public void Matches_the_definition_for_all_lengths(int queries, int keys)
    {
        manual_seed(1);
        foreach (var causal in new[] { true, false })
            foreach (var (heads, groups, keySize, valueSize) in new[] { (1, 1, 64, 60), (3, 1, 16, 16), (3, 3, 16, 8), (8, 2, 16, 16) })
            {
                using var scope = NewDisposeScope();
                OpCheck.Agrees(
                    i => FlaOps.Attention(i[0], i[1], i[2], causal),
                    i => new NaiveAttention { Causal = causal }.Run(i[0], i[1], i[2]),
                    Inputs(heads == 3 ? 2 : 1, queries, keys, heads, groups, keySize, valueSize), OutputLimit, GradientLimit,
                    $"causal {causal}, heads {heads}/{groups}, sizes {keySize} {valueSize}");
            }
    }

    [Theory]
    [InlineData(1)]
    [InlineData(7)]
    [InlineData(8)]
    [InlineData(16)]
    [InlineData(60)]
    [InlineData(64)]
    [InlineData(128)]
    public void Matches_the_definition_for_all_head_sizes(int keySize)
    {
        manual_seed(2);
        foreach (var valueSize in new[] { keySize, 1, 24 })
            foreach (var window in new int?[] { null, 16 })
            {
                using var scope = NewDisposeScope();
                OpCheck.Agrees(
                    i => FlaOps.Attention(i[0], i[1], i[2], window: window),
                    i => new NaiveAttention { Window = window }.Run(i[0], i[1], i[2]),
                    Inputs(1, 65, 65, 4, 2, keySize, valueSize), OutputLimit, GradientLimit, $"V = {valueSize}, window {window}");
            }
    }

    [Theory]
    [InlineData(1)]
    [InlineData(16)]
    [InlineData(64)]
    [InlineData(300)]
    public void A_window_hides_older_keys(int window)
    {
        manual_seed(3);
        foreach (var (queries, keys) in new[] { (300, 300), (128, 217), (203, 113), (1, 239), (15, 400) })
        {
            using var scope = NewDisposeScope();
            OpCheck.Agrees(
                i => FlaOps.Attention(i[0], i[1], i[2], window: window),
                i => new NaiveAttention { Window = window }.Run(i[0], i[1], i[2]),
                Inputs(1, queries, keys, 4, 2, 16, 16), OutputLimit, GradientLimit, $"{queries} queries, {keys} keys");
        }
    }

    public static TheoryData<double?, bool, bool, int?, double?> Options()
    {
        var options = new TheoryData<double?, bool, bool, int?, double?>();
        foreach (var softcap in new double?[] { null, 2.0 })
            foreach (var sinks in new[] { false, true })
                foreach (var slopes in new[] { false, true })
                    foreach (var window in new int?[] { null, 20 })
                        options.Add(softcap, sinks, slopes, window, softcap is null ? null : 0.3);
        return options;
    }

    [Theory]
    [MemberData(nameof(Options))]
    public void Options_combine(double? softcap, bool withSinks, bool withSlopes, int? window, double? scale)
    {
        manual_seed(4);
        foreach (var (queries, keys, causal) in new[] { (65, 65, true), (33, 150, true), (50, 20, true), (30, 70, false) })
        {
            if (window is not null && !causal)
                continue;
            using var scope = NewDisposeScope();
            var slopes = withSlopes ? tensor(s_slopes) : null;
            var inputs = Inputs(2, queries, keys, 4, 2, 16, 24);
            if (withSinks)
                inputs = [.. inputs, randn(4) * 2];
            OpCheck.Agrees(
                i => FlaOps.Attention(i[0], i[1], i[2], causal, scale, window, softcap: softcap,
                    sinks: withSinks ? i[3] : null, alibiSlopes: slopes),
                i => new NaiveAttention { Causal = causal, Scale = scale, Window = window, Softcap = softcap }
                    .Run(i[0], i[1], i[2], withSinks ? i[3] : null, slopes),
                inputs, OutputLimit, GradientLimit, $"{queries} queries, {keys} keys, causal {causal}");
        }
    }

    [Fact]
    public void The_scale_reaches_both_paths()
    {
        using var scope = NewDisposeScope();
        manual_seed(5);
        foreach (var scale in new[] { 1.0, -0.2, 0.0 })
            foreach (var window in new int?[] { null, 10 })
                OpCheck.Agrees(
                    i => FlaOps.Attention(i[0], i[1], i[2], scale: scale, window: window),
                    i => new NaiveAttention { Scale = scale, Window = window }.Run(i[0], i[1], i[2]),
                    Inputs(2, 40, 40, 2, 2, 8, 12), OutputLimit, 2 * GradientLimit, $"scale {scale}, window {window}");
    }

    [Theory]
    [InlineData(true, null)]
    [InlineData(false, null)]
    [InlineData(true, 9)]
    public void Packed_sequences_match_the_definition(bool causal, int? window)
    {
        manual_seed(6);
        long[] queries = [0, 0, 5, 70, 70, 71, 200];
        long[][] keyOffsets = [queries, [0, 3, 8, 50, 90, 90, 230]]; // empty keys, empty queries, fewer keys than queries
        foreach (var keys in keyOffsets)
            foreach (var groups in new[] { 4, 2 })
            {
                using var scope = NewDisposeScope();
                var (q, k) = (tensor(queries), tensor(keys).to(int32));
                OpCheck.Agrees(
                    i => FlaOps.Attention(i[0], i[1], i[2], causal, window: window, cuSeqlensQ: q, cuSeqlensK: keys == queries ? null : k),
                    i => new NaiveAttention { Causal = causal, Window = window, OffsetsQ = queries, OffsetsK = keys }.Run(i[0], i[1], i[2]),
                    Inputs(1, queries[^1], keys[^1], 4, groups, 16, 16), OutputLimit, GradientLimit, $"causal {causal}, window {window}");
            }
    }

    [Theory]
    [InlineData(null)]
    [InlineData(8)]
    public void A_packed_neighbour_never_leaks(int? window)
    {
        using var scope = NewDisposeScope();
        manual_seed(7);
        var offsets = tensor(new long[] { 0, 30, 75, 100 });
        var inputs = Inputs(1, 100, 100, 2, 1, 16, 16);
        var changed = inputs.Select(input => input.clone()).ToArray();
        foreach (var input in changed)
        {
            input[.., ..30] = tensor(1e4f);
            input[.., 75..] = tensor(float.NaN);
        }
        Tensor Op(Tensor[] i) => FlaOps.Attention(i[0], i[1], i[2], window: window, cuSeqlensQ: offsets)[.., 30..75];
        var (output, gradients) = OpCheck.Run(Op, inputs);
        var (same, sameGradients) = OpCheck.Run(Op, changed);
        Assert.True(output.equal(same).all().ToBoolean());
        for (var i = 0; i < inputs.Length; i++)
            Assert.True(gradients[i][.., 30..75].equal(sameGradients[i][.., 30..75]).all().ToBoolean());
    }

    [Fact]
    public void Queries_without_keys_give_zero_and_no_gradient()
    {
        using var scope = NewDisposeScope();
        var (output, gradients) = OpCheck.Run(
            i => FlaOps.Attention(i[0], i[1], i[2], sinks: i[3]), [.. Inputs(2, 9, 4, 2, 1, 8, 8), randn(2)]);
        Assert.Equal(0, output[.., ..5].abs().max().ToSingle());
        Assert.Equal(0, gradients[0][.., ..5].abs().max().ToSingle());
        Assert.True(output[.., 5..].abs().min().ToSingle() > 0);
    }

    [Theory]
    [InlineData(ScalarType.Float16)]
    [InlineData(ScalarType.BFloat16)]
    public void Half_dtypes_err_at_most_twice_as_much_as_plain_torch(ScalarType dtype)
    {
        manual_seed(8);
        foreach (var (queries, keys, window, softcap) in new (int, int, int?, double?)[]
            { (128, 128, null, null), (113, 203, null, null), (200, 200, 40, null), (128, 128, null, 5.0), (1, 239, null, null) })
            foreach (var (heads, groups, valueSize) in new[] { (4, 4, 64), (4, 2, 40) })
            {
                using var scope = NewDisposeScope();
                var inputs = Inputs(2, queries, keys, heads, groups, 64, valueSize).Select(input => input.to(dtype)).ToArray();
                var naive = new NaiveAttention { Window = window, Softcap = softcap };
                var (output, gradients) = OpCheck.Run(i => FlaOps.Attention(i[0], i[1], i[2], window: window, softcap: softcap), inputs);
                var (plain, plainGradients) = OpCheck.Run(i => naive.Run(i[0], i[1], i[2]), inputs);
                var (exact, exactGradients) = OpCheck.Run(
                    i => naive.Run(i[0], i[1], i[2]), [.. inputs.Select(input => input.to(float64))]);
                Assert.Equal(dtype, output.dtype);
                Within(2, output, plain, exact, "output");
                for (var i = 0; i < inputs.Length; i++)
                    Within(3, gradients[i], plainGradients[i], exactGradients[i], $"gradient {i}");
            }

        static void Within(double factor, Tensor actual, Tensor plain, Tensor exact, string what)
        {
            double Error(Tensor tensor) => (tensor.to(float64) - exact).abs().max().ToDouble();
            Assert.True(Error(actual) <= factor * Error(plain) + 1e-5, $"{what}: {Error(actual)} against {Error(plain)} of plain torch");
        }
    }

    [Fact]
    public void Dropout_scales_what_it_keeps()
    {
        using var scope = NewDisposeScope();
        manual_seed(9);
        var (q, k) = (zeros(1, 200, 2, 4), zeros(1, 500, 2, 4));
        var weights = FlaOps.Attention(q, k, eye(500).view(1, 500, 1, 500).expand(1, 500, 2, 500), causal: false, dropout: 0.3) * 500;
        var kept = weights > 0;
        Assert.Equal(0.7, kept.to(float64).mean().ToDouble(), 2); // 200,000 draws: a standard error of 0.001
        Assert.True(weights[kept].allclose(tensor((float)(1 / 0.7)), rtol: 1e-5));

        var inputs = Inputs(1, 50, 50, 2, 2, 8, 8);
        Assert.True(FlaOps.Attention(inputs[0], inputs[1], inputs[2], dropout: 0)
            .equal(FlaOps.Attention(inputs[0], inputs[1], inputs[2])).all().ToBoolean());
    }

    [Fact]
    public void Dropout_has_the_gradient_of_what_it_kept()
    {
        using var scope = NewDisposeScope();
        manual_seed(10);
        // The weights that were used, read off with unit vectors as values: the same draws by the same seed.
        var inputs = Inputs(1, 30, 30, 2, 2, 8, 30);
        Tensor Dropped(Tensor q, Tensor k, Tensor v)
        {
            manual_seed(11);
            return FlaOps.Attention(q, k, v, dropout: 0.4);
        }
        var unit = eye(30).view(1, 30, 1, 30).expand(1, 30, 2, 30);
        var keep = (Dropped(inputs[0], inputs[1], unit) > 0).to(float64).transpose(1, 2); // [1, H, Tq, Tk]
        OpCheck.Agrees(
            i => Dropped(i[0], i[1], i[2]),
            i =>
            {
                var weights = new NaiveAttention().Run(i[0], i[1], unit.to(float64)).transpose(1, 2) * keep / 0.6;
                return matmul(weights, i[2].transpose(1, 2)).transpose(1, 2);
            },
            inputs, OutputLimit, GradientLimit, "dropout");
    }

    [Fact]
    public void Repeats_bit_by_bit()
    {
        using var scope = NewDisposeScope();
        manual_seed(12);
        var inputs = Inputs(2, 300, 300, 4, 2, 32, 32);
        OpCheck.Repeats(i => FlaOps.Attention(i[0], i[1], i[2]), inputs);
        OpCheck.Repeats(i => FlaOps.Attention(i[0], i[1], i[2], window: 50), inputs);
        OpCheck.Repeats(i =>
        {
            manual_seed(13);
            return FlaOps.Attention(i[0], i[1], i[2], dropout: 0.2, sinks: ones(4));
        }, inputs);
    }

    [Fact]
    public void Strided_inputs_count()
    {
        using var scope = NewDisposeScope();
        manual_seed(14);
        foreach (var window in new int?[] { null, 7 })
        {
            OpCheck.Agrees( // the parts of a fused projection
                i => FlaOps.Attention(i[0][.., .., ..4], i[0][.., .., 4..6], i[0][.., .., 6..], window: window),
                i => new NaiveAttention { Window = window }.Run(i[0][.., .., ..4], i[0][.., .., 4..6], i[0][.., .., 6..]),
                [randn(2, 30, 8, 16)], OutputLimit, GradientLimit, "fused projection");
            OpCheck.Agrees( // features that are not adjacent
                i => FlaOps.Attention(i[0].transpose(1, 3), i[1].transpose(1, 3), i[2].transpose(1, 3), window: window),
                i => new NaiveAttention { Window = window }.Run(i[0].transpose(1, 3), i[1].transpose(1, 3), i[2].transpose(1, 3)),
                [randn(2, 16, 3, 30), randn(2, 16, 3, 30), randn(2, 16, 3, 30)], OutputLimit, GradientLimit, "features apart");
        }
    }

    [Fact]
    public void Large_scores_stay_finite()
    {
        using var scope = NewDisposeScope();
        manual_seed(15);
        foreach (var window in new int?[] { null, 20 })
        {
            var inputs = Inputs(1, 64, 64, 2, 2, 16, 16);
            inputs[0].mul_(100);
            OpCheck.Agrees(
                i => FlaOps.Attention(i[0], i[1], i[2], window: window),
                i => new NaiveAttention { Window = window }.Run(i[0], i[1], i[2]),
                inputs, 4e-5, 5e-4, "large scores"); // scores near 400 are rounded by 1.5e-5
        }
    }

    [Fact]
    public void A_window_over_a_long_input_needs_little_memory()
    {
        using var scope = NewDisposeScope();
        var inputs = Inputs(1, 20_000, 20_000, 1, 1, 8, 8);
        var (output, gradients) = OpCheck.Run(i => FlaOps.Attention(i[0], i[1], i[2], window: 1024), inputs);
        var tail = new NaiveAttention { Window = 1024 }.Run(
            inputs[0][.., ^40..].to(float64), inputs[1][.., ^1100..].to(float64), inputs[2][.., ^1100..].to(float64));
        Compare.Close(output[.., ^40..], tail, OutputLimit, "tail");
        Assert.True(gradients.All(gradient => gradient.isfinite().all().ToBoolean()));
    }

    [Fact]
    public void Steps_continue_a_prefix() =>
        Gen.Select(Gen.Int[1, 40], Gen.Int[1, 40], Gen.Int[1, 3], Gen.Int[1, 3], Gen.Int[1, 60]).Sample((prefix, rest, groups, members, window) =>
        {
            using var scope = NewDisposeScope();
            var time = prefix + rest;
            var (q, k, v) = (randn(1, time, groups * members, 8), randn(1, time, groups, 8), randn(1, time, groups, 8));
            foreach (var w in new int?[] { null, window })
            {
                var whole = FlaOps.Attention(q, k, v, window: w);
                Compare.Close(FlaOps.Attention(q[.., prefix..], k, v, window: w), whole[.., prefix..], 1e-5, "chunk");
                Compare.Close(FlaOps.Attention(q[.., ^1..], k, v, window: w), whole[.., ^1..], 1e-5, "step");
            }
        }, iter: 25, threads: 1);

    [Fact]
    public void The_logarithm_of_the_sums_is_returned_beside_the_output()
    {
        manual_seed(16);
        long[] queries = [0, 0, 5, 70, 90], keys = [0, 3, 8, 50, 50]; // empty queries, fewer keys than queries, empty keys
        foreach (var isPacked in new[] { false, true })
            foreach (var (causal, window, softcap, withSinks, withSlopes) in new (bool, int?, double?, bool, bool)[]
                { (true, null, null, false, false), (false, null, null, true, false), (true, 7, 3.0, true, true) })
            {
                using var scope = NewDisposeScope();
                var (batch, packed) = (isPacked ? 1 : 3, isPacked ? tensor(queries) : null);
                var inputs = Inputs(batch, 90, 50, 4, 2, 16, 8);
                var (sinks, slopes) = (withSinks ? randn(4) : null, withSlopes ? tensor(s_slopes) : null);
                var (output, logSumExp) = FlaOps.AttentionWithLogSumExp(inputs[0], inputs[1], inputs[2], causal, null, window,
                    packed, isPacked ? tensor(keys) : null, softcap, sinks, slopes);
                var naive = new NaiveAttention
                {
                    Causal = causal,
                    Window = window,
                    Softcap = softcap,
                    OffsetsQ = isPacked ? queries : null,
                    OffsetsK = keys,
                };
                var wide = Array.ConvertAll(inputs, input => input.to(float64));
                Compare.Close(output, naive.Run(wide[0], wide[1], wide[2], sinks, slopes), OutputLimit, "output");
                var expected = naive.LogSumExp(wide[0], wide[1], sinks, slopes);
                var seen = expected.isfinite();
                Assert.Equal(ScalarType.Float32, logSumExp.dtype);
                Assert.Equal([batch, 4, 90], logSumExp.shape);
                Assert.Equal(withSinks, seen.all().ToBoolean());
                Assert.True(logSumExp[~seen].isneginf().all().ToBoolean());
                Compare.Close(logSumExp[seen], expected[seen], OutputLimit, "logarithms");
            }
    }

    [Fact]
    public void Parts_of_the_keys_are_joined_by_their_sums()
    {
        using var scope = NewDisposeScope();
        manual_seed(17);
        var inputs = Inputs(2, 20, 60, 4, 2, 16, 8);
        OpCheck.Agrees(
            i => FlaOps.Attention(i[0], i[1], i[2], causal: false),
            i => new NaiveAttention { Causal = false }.Run(i[0], i[1], i[2]), inputs, OutputLimit, GradientLimit, "whole");
        var (first, second) = (Part(0, 23), Part(23, 37));
        var weights = stack([first.logSumExp, second.logSumExp]).softmax(0).transpose(2, 3).unsqueeze(-1); // [2, B, Tq, H, 1]
        Compare.Close(weights[0] * first.output + weights[1] * second.output,
            FlaOps.Attention(inputs[0], inputs[1], inputs[2], causal: false), OutputLimit, "joined");

        (Tensor output, Tensor logSumExp) Part(long start, long length) => FlaOps.AttentionWithLogSumExp(
            inputs[0], inputs[1].narrow(1, start, length), inputs[2].narrow(1, start, length), causal: false);
    }

    [Fact]
    public void Gradients_flow_through_the_output_alone()
    {
        using var scope = NewDisposeScope();
        manual_seed(18);
        var inputs = Inputs(1, 20, 20, 2, 2, 8, 8);
        OpCheck.Agrees(
            i => FlaOps.AttentionWithLogSumExp(i[0], i[1], i[2]).output,
            i => new NaiveAttention().Run(i[0], i[1], i[2]), inputs, OutputLimit, GradientLimit, "beside the sums");
        inputs[0].requires_grad_();
        Assert.False(FlaOps.AttentionWithLogSumExp(inputs[0], inputs[1], inputs[2]).logSumExp.requires_grad);
    }

    [Fact]
    public void A_plan_says_what_computes_it_and_why()
    {
        using var scope = NewDisposeScope();
        var inputs = Inputs(1, 20, 30, 2, 2, 8, 8);
        var (q, k, v) = (inputs[0], inputs[1], inputs[2]);
        Assert.Equal(
            new OperationPath("Attention", FlaOps.TorchPath, "There is no kernel for it on such a device. So libtorch's kernel."),
            FlaOps.PlanAttention(q, k, v, causal: false));
        Assert.Contains("as many queries as keys, not 20 and 30.", FlaOps.PlanAttention(q, k, v).Reason,
            StringComparison.Ordinal);
        Assert.Contains("has no window.", FlaOps.PlanAttention(q, k, v, window: 9).Reason, StringComparison.Ordinal);
        Assert.Contains("block by block", FlaOps.PlanAttention(q, k, v, window: 9).Reason, StringComparison.Ordinal);
        Assert.DoesNotContain("window", FlaOps.PlanAttention(q, k, v, window: 30).Reason, StringComparison.Ordinal);
        Assert.Equal("Asked for: libtorch's kernel.",
            FlaOps.PlanAttention(q, k, v, causal: false, backend: AttentionBackend.Torch).Reason);
    }

    [Fact]
    public void Libtorch_computes_what_it_knows()
    {
        using var scope = NewDisposeScope();
        manual_seed(19);
        OpCheck.Agrees(
            i => FlaOps.Attention(i[0], i[1], i[2], backend: AttentionBackend.Torch),
            i => new NaiveAttention().Run(i[0], i[1], i[2]), Inputs(2, 40, 40, 4, 2, 16, 8), OutputLimit, GradientLimit,
            "libtorch");
    }

    [Fact]
    public void A_backend_that_does_not_take_the_call_says_why()
    {
        using var scope = NewDisposeScope();
        var inputs = Inputs(1, 20, 30, 4, 2, 8, 8);
        var (q, k, v) = (inputs[0], inputs[1], inputs[2]);
        const string Torch = "AttentionBackend.Torch does not take this call: libtorch's ";
        const string Instead = " Use AttentionBackend.Auto.";
        Refused("AttentionBackend.FlaSharp does not take this call: There is no kernel for it on such a device." + Instead,
            () => FlaOps.Attention(q, k, v, backend: AttentionBackend.FlaSharp));
        Refused(Torch + "causal mask takes as many queries as keys, not 20 and 30." + Instead,
            () => FlaOps.Attention(q, k, v, backend: AttentionBackend.Torch));
        Refused(Torch + "kernel has no window." + Instead,
            () => FlaOps.Attention(q, k, v, window: 3, backend: AttentionBackend.Torch));
        Refused(Torch + "kernel has no softcap." + Instead,
            () => FlaOps.Attention(q, k, v, softcap: 3, backend: AttentionBackend.Torch));
        Refused(Torch + "kernel has no dropout." + Instead,
            () => FlaOps.Attention(q, k, v, dropout: 0.5, backend: AttentionBackend.Torch));
        Refused(Torch + "kernel has no sinks." + Instead,
            () => FlaOps.Attention(q, k, v, sinks: ones(4), backend: AttentionBackend.Torch));
        Refused(Torch + "kernel has no ALiBi slopes." + Instead,
            () => FlaOps.Attention(q, k, v, alibiSlopes: ones(4), backend: AttentionBackend.Torch));
        Refused(Torch + "kernel has no logarithms of the sums." + Instead,
            () => FlaOps.AttentionWithLogSumExp(q, k, v, causal: false, backend: AttentionBackend.Torch));
        Refused(Torch + "kernel takes no queries without keys." + Instead,
            () => FlaOps.Attention(q, k, v, false, cuSeqlensQ: tensor(new long[] { 0, 9, 20 }),
                cuSeqlensK: tensor(new long[] { 0, 0, 30 }), backend: AttentionBackend.Torch));
        Refused(Torch + "kernel has no window." + Instead,
            () => FlaOps.PlanAttention(q, k, v, window: 3, backend: AttentionBackend.Torch));
        var unknown = Assert.Throws<ArgumentOutOfRangeException>("backend",
            () => FlaOps.Attention(q, k, v, backend: (AttentionBackend)7));
        Assert.Equal((AttentionBackend)7, unknown.ActualValue);

        static void Refused(string message, Func<object> call) =>
            Assert.Equal(message, Assert.Throws<NotSupportedException>(call).Message);
    }

    [Fact]
    public void Messages_hold_the_values_that_were_given()
    {
        using var scope = NewDisposeScope();
        var (q, k, v) = (ones(2, 5, 4, 8), ones(2, 6, 2, 8), ones(2, 6, 2, 3));
        Says("[2, 6, 2, 7]", () => FlaOps.Attention(q, ones(2, 6, 2, 7), v));
        Says("Hkv = 3, must divide the heads of q, H = 4", () => FlaOps.Attention(q, ones(2, 6, 3, 8), ones(2, 6, 3, 8)));
        Says("but is Float16", () => FlaOps.Attention(q, k.to(float16), v));
        Says("but is NaN", () => FlaOps.Attention(q, k, v, scale: double.NaN));
        Says("Actual value was -2", () => FlaOps.Attention(q, k, v, window: -2));
        Says("Actual value was -0.5", () => FlaOps.Attention(q, k, v, softcap: -0.5));
        Says("Actual value was 1.5", () => FlaOps.Attention(q, k, v, dropout: 1.5));
        Says("q has 5 tokens and k has 6", () =>
            FlaOps.Attention(q[..1], k[..1], v[..1], cuSeqlensQ: tensor(new long[] { 0, 2, 5 })));

        static void Says(string part, Func<object> call) =>
            Assert.Contains(part, Assert.ThrowsAny<ArgumentException>(call).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Bad_input_is_named()
    {
        using var scope = NewDisposeScope();
        var (q, k, v) = (ones(2, 5, 4, 8), ones(2, 6, 2, 8), ones(2, 6, 2, 3));
        Assert.Throws<ArgumentNullException>("q", () => FlaOps.Attention(null!, k, v));
        Assert.Throws<ArgumentNullException>("k", () => FlaOps.Attention(q, null!, v));
        Assert.Throws<ArgumentNullException>("v", () => FlaOps.Attention(q, k, null!));
        Assert.Throws<ArgumentException>("q", () => FlaOps.Attention(q[0], k, v));
        Assert.Throws<ArgumentException>("q", () => FlaOps.Attention(q.to(float64), k, v));
        Assert.Throws<ArgumentException>("q", () => FlaOps.Attention(q[.., ..0], k, v));
        Assert.Throws<ArgumentException>("k", () => FlaOps.Attention(q, ones(2, 6, 2, 7), v));
        Assert.Throws<ArgumentException>("k", () => FlaOps.Attention(q, ones(2, 6, 3, 8), ones(2, 6, 3, 8)));
        Assert.Throws<ArgumentException>("k", () => FlaOps.Attention(q, k.to(float16), v));
        Assert.Throws<ArgumentException>("k", () => FlaOps.Attention(q, k[.., ..0], v[.., ..0]));
        Assert.Throws<ArgumentException>("v", () => FlaOps.Attention(q, k, ones(2, 5, 2, 3)));
        Assert.Throws<ArgumentException>("scale", () => FlaOps.Attention(q, k, v, scale: double.NaN));
        Assert.Throws<ArgumentOutOfRangeException>("window", () => FlaOps.Attention(q, k, v, window: 0));
        Assert.Throws<ArgumentException>("window", () => FlaOps.Attention(q, k, v, causal: false, window: 3));
        Assert.Throws<ArgumentOutOfRangeException>("softcap", () => FlaOps.Attention(q, k, v, softcap: 0));
        Assert.Throws<ArgumentException>("sinks", () => FlaOps.Attention(q, k, v, sinks: ones(2)));
        Assert.Throws<ArgumentException>("alibiSlopes", () => FlaOps.Attention(q, k, v, alibiSlopes: ones(2)));
        Assert.Throws<ArgumentException>("alibiSlopes", () => FlaOps.Attention(q, k, v, alibiSlopes: ones(4, dtype: float16)));
        Assert.Throws<ArgumentOutOfRangeException>("dropout", () => FlaOps.Attention(q, k, v, dropout: 1));
        var offsets = tensor(new long[] { 0, 2, 5 });
        Assert.Throws<ArgumentException>("cuSeqlensQ", () => FlaOps.Attention(q, k, v, cuSeqlensQ: offsets, cuSeqlensK: offsets));
        Assert.Throws<ArgumentException>("cuSeqlensK", () => FlaOps.Attention(q, k, v, cuSeqlensK: offsets));
        Assert.Throws<ArgumentException>("cuSeqlensK", () => FlaOps.Attention(q[..1], k[..1], v[..1], cuSeqlensQ: offsets));
        Assert.Throws<ArgumentException>("cuSeqlensK", () =>
            FlaOps.Attention(q[..1], k[..1], v[..1], cuSeqlensQ: offsets, cuSeqlensK: tensor(new long[] { 0, 6 })));
    }
}
