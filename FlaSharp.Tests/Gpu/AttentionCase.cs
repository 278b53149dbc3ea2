using FlaSharp.Ops;
using FlaSharp.Tests.Reference;
using FlaSharp.Tests.TestSupport;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Gpu;

/// <summary>A call of softmax attention on a GPU, to compare with the whole matrix of scores in float64.</summary>
internal sealed record AttentionCase
{
    // FlashAttention's rule: so many times the largest error of a plain computation in the same dtype.
    private const double OutputFactor = 2, GradientFactor = 3;
    private const double Float32Error = 2e-5; // where the plain one makes none

    private static readonly string[] s_names = ["q", "k", "v", "sinks"];

    public int B { get; init; } = 1;

    public int Queries { get; init; } = 130;

    /// <summary>As many as queries if null.</summary>
    public int? Keys { get; init; }

    public int H { get; init; } = 2;

    public int? KvHeads { get; init; }

    public int K { get; init; } = 64;

    /// <summary>K if null.</summary>
    public int? V { get; init; }

    public bool Causal { get; init; } = true;

    public double? Scale { get; init; }

    public int? Window { get; init; }

    public double? Softcap { get; init; }

    public bool HasSinks { get; init; }

    public bool HasSlopes { get; init; }

    public double Dropout { get; init; }

    public ScalarType Dtype { get; init; } = ScalarType.BFloat16;

    public long[]? Offsets { get; init; }

    /// <summary>As those of the queries if null.</summary>
    public long[]? KeyOffsets { get; init; }

    /// <summary>Whether to do without Hopper's own instructions where there are some.</summary>
    public bool Portable { get; init; }

    public int KeyCount => Keys ?? Queries;

    private NaiveAttention Naive => new()
    {
        Causal = Causal,
        Scale = Scale,
        Window = Window,
        Softcap = Softcap,
        OffsetsQ = Offsets,
        OffsetsK = KeyOffsets,
    };

    private Tensor? Slopes => HasSlopes ? (arange(1, H + 1, device: CUDA).to(float32) / (4 * H)) : null;

    /// <summary>q, k, v, and the sinks in float32 or null.</summary>
    public Tensor?[] Inputs(ulong seed = 1)
    {
        using var generator = new Generator(seed); // TorchSharp has them for the CPU alone
        var kvHeads = KvHeads ?? H;
        Tensor Random(params long[] shape) => randn(shape, generator: generator).to(Dtype, CUDA);
        return
        [
            Random(B, Queries, H, K), Random(B, KeyCount, kvHeads, K), Random(B, KeyCount, kvHeads, V ?? K),
            HasSinks ? Random(H).to(float32) : null,
        ];
    }

    /// <summary>Fails unless output and gradients, and the logarithms of the sums, are as near to float64 as they should be.</summary>
    public void Check(Tensor?[]? inputs = null)
    {
        using var scope = NewDisposeScope();
        inputs ??= Inputs();
        var slopes = Slopes;
        Func<Tensor?[], Tensor> Plain(ScalarType dtype) =>
            x => Naive.Run(x[0]!, x[1]!, x[2]!, x[3], slopes?.to(dtype));
        var wide = Array.ConvertAll(inputs, input => input?.to(float64));
        Close(Run(inputs), Gradients(Plain(Dtype), Array.ConvertAll(inputs, input => input?.to(Dtype))),
            Gradients(Plain(ScalarType.Float64), wide), ToString());
        CheckLogSumExp(inputs, wide);
    }

    /// <summary>The output, and the gradients of a weighted sum of it, by name.</summary>
    public Dictionary<string, Tensor> Run(Tensor?[] inputs) => Gradients(x => Forward(x).output, inputs);

    public (Tensor output, Tensor logSumExp) Forward(Tensor?[] x)
    {
        var offsets = Offsets is null ? null : tensor(Offsets);
        var keyOffsets = KeyOffsets is null ? null : tensor(KeyOffsets);
        if (!Portable)
            return FlaOps.AttentionWithLogSumExp(x[0]!, x[1]!, x[2]!, Causal, Scale, Window, offsets, keyOffsets, Softcap, x[3],
                Slopes, Dropout, AttentionBackend.FlaSharp);
        var sequences = AttentionSequences.Of(x[0]!, x[1]!, offsets, keyOffsets);
        var (output, logSumExp) = AttentionCudaFunction.Run(x[0]!, x[1]!, x[2]!, x[3], Slopes, sequences, new AttentionOptions
        {
            Causal = Causal,
            Scale = Scale ?? 1 / Math.Sqrt(K),
            Window = Window < sequences.Keys.MaxLength ? Window : null,
            Softcap = Softcap,
            Dropout = Dropout,
            HasSinks = x[3] is not null,
            HasAlibiSlopes = HasSlopes,
            ReturnsLogSumExp = true,
        }, portable: true);
        return (output, logSumExp!);
    }

    /// <summary>Fails unless each largest error is within its factor of the plain computation's.</summary>
    public static void Close(
        Dictionary<string, Tensor> actual, Dictionary<string, Tensor> plain, Dictionary<string, Tensor> exact, string what)
    {
        foreach (var (name, value) in exact)
        {
            if (value.numel() == 0)
                continue;
            var limit = (name == "output" ? OutputFactor : GradientFactor) * Error(plain[name], value)
                + Float32Error * (1 + value.abs().max().ToDouble());
            var error = Error(actual[name], value);
            Assert.True(error <= limit, $"{what}: {name} is off by up to {error:E2}, more than {limit:E2}.");
        }

        static double Error(Tensor x, Tensor exact)
        {
            using var difference = (x.to(float64) - exact).abs().max();
            return difference.ToDouble();
        }
    }

    /// <summary>Fails unless all results have the same bits.</summary>
    public static void Same(Dictionary<string, Tensor> first, Dictionary<string, Tensor> second, string what)
    {
        foreach (var (name, value) in first)
            Assert.True(GlaCase.AreSame(value, second[name]), $"{what}: {name} differs.");
    }

    /// <summary>The output, and the gradients of a weighted sum of it, by name.</summary>
    public static Dictionary<string, Tensor> Gradients(Func<Tensor?[], Tensor> operation, Tensor?[] inputs)
    {
        var leaves = Array.ConvertAll(inputs, input => input?.detach().requires_grad_());
        var output = operation(leaves);
        using var generator = new Generator(7);
        var weights = randint(-8, 9, output.shape, generator: generator).to(output.dtype, CUDA) / 4; // exact in every dtype
        output.Backward(weights);
        var results = new Dictionary<string, Tensor> { ["output"] = output.detach() };
        foreach (var (name, leaf) in s_names.Zip(leaves))
            if (leaf is not null)
                results[name] = leaf.grad ?? zeros_like(leaf);
        return results;
    }

    private void CheckLogSumExp(Tensor?[] inputs, Tensor?[] wide)
    {
        using var noGrad = no_grad();
        var actual = Forward(inputs).logSumExp;
        var expected = Naive.LogSumExp(wide[0]!, wide[1]!, wide[3], Slopes);
        var seen = expected.isfinite();
        Assert.Equal(expected.shape, actual.shape);
        Assert.True(actual[~seen].isneginf().all().ToBoolean(), $"{this}: a query that sees no key has a logarithm.");
        if (!seen.any().ToBoolean())
            return;
        var (found, sought) = (actual[seen].to(float64), expected[seen]);
        var error = ((found - sought).abs() / (1 + sought.abs())).max().ToDouble();
        Assert.True(error <= 2e-5, $"{this}: a logarithm of a sum is off by {error:E2}.");
    }
}
