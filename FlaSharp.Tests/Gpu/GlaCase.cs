using FlaSharp.Kernels.Gla;
using FlaSharp.Ops;
using FlaSharp.Tests.Reference;
using FlaSharp.Tests.TestSupport;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Gpu;

/// <summary>A call of gated linear attention on a GPU, to compare with the recurrence in float64.</summary>
internal sealed record GlaCase
{
    public const string ZeroGate = "0";
    public const string WeakGate = "logsigmoid / 16";
    public const string Gate = "logsigmoid";
    public const string FarGate = "-2"; // of chunks of 64 tokens: each within its frame, but far from the next one's
    public const string FarShortGate = "-4"; // of chunks of 32
    public const string StrongGate = "-5";
    public const string StrongerGate = "-20";
    public const string SomeResets = "2% -inf";
    public const string AllResets = "all -inf";
    public const string MixedGate = "mixed";
    public const string AlternatingGate = "every other chunk -20";

    private const double OutputLimit = 4e-3;
    private const double SmallOutputLimit = 5e-3; // of few channels: the rounding of few terms does not average out
    private const double GradientLimit = 5e-3;
    private const double DecayGradientLimit = 1.5e-2;
    private const double Float32Part = 1d / 200; // of these limits
    private const double Float32Resolution = 2.4e-7; // two units in the last place

    private static readonly string[] s_gradients = ["dq", "dk", "dv", "dg", "dInitialState"];

    public int B { get; init; } = 1;

    public int T { get; init; } = 130;

    public int H { get; init; } = 2;

    public int? KvHeads { get; init; }

    public int K { get; init; } = 64;

    public int V { get; init; } = 64;

    public string Decay { get; init; } = Gate;

    public ScalarType Dtype { get; init; } = ScalarType.BFloat16;

    public ScalarType? GateDtype { get; init; }

    public int[]? Offsets { get; init; }

    public bool Reverse { get; init; }

    public bool HasInitialState { get; init; } = true;

    /// <summary>Whether to do without Hopper's own instructions where there are some.</summary>
    public bool Portable { get; init; }

    private int States => Offsets is null ? B : Offsets.Length - 1;

    private Sequences Sequences => Sequences.Of(B, T, Offsets is null ? null : tensor(Offsets));

    /// <summary>q, k, v, g, and the initial state or null.</summary>
    public Tensor?[] Inputs(ulong seed = 1)
    {
        using var generator = new Generator(seed); // TorchSharp has them for the CPU alone
        var kvHeads = KvHeads ?? H;
        Tensor Random(params long[] shape) => randn(shape, generator: generator).cuda();
        var z = Random(B, T, kvHeads, K);
        var decays = Decay switch
        {
            ZeroGate => zeros_like(z),
            WeakGate => nn.functional.logsigmoid(z) / 16,
            Gate => nn.functional.logsigmoid(z),
            FarGate => full_like(z, -2),
            FarShortGate => full_like(z, -4),
            StrongGate => full_like(z, -5),
            StrongerGate => full_like(z, -20),
            SomeResets => nn.functional.logsigmoid(z)
                .masked_fill(rand(z.shape, generator: generator).cuda() < 0.02, float.NegativeInfinity),
            AllResets => full_like(z, float.NegativeInfinity),
            MixedGate => nn.functional.logsigmoid(8 * z),
            AlternatingGate => nn.functional.logsigmoid(z)
                .masked_fill(arange(T, device: CUDA).remainder(128).view(1, T, 1, 1) >= 64, -20),
            _ => throw new ArgumentException(Decay),
        };
        return
        [
            Random(B, T, H, K).to(Dtype), Random(B, T, kvHeads, K).to(Dtype), Random(B, T, kvHeads, V).to(Dtype),
            decays.to(GateDtype ?? Dtype), HasInitialState ? Random(States, H, K, V) : null,
        ];
    }

    /// <summary>Fails unless a run as one segment, one as several and, if asked for, the recurrence agree with float64.</summary>
    public void Check(Tensor?[]? inputs = null, params LinearAttentionMode[] modes)
    {
        using var scope = NewDisposeScope();
        inputs ??= Inputs();
        var expected = Gradients(
            x => NaiveGla.Run(x[0]!, x[1]!, x[2]!, x[3]!, null, x[4], Offsets, Reverse),
            Array.ConvertAll(inputs, input => input?.to(float64)));
        if (modes.Length == 0)
            modes = [LinearAttentionMode.FusedChunk, LinearAttentionMode.Chunk];
        foreach (var mode in modes)
            Close(Run(mode, inputs), expected, $"{this} {mode}");
    }

    /// <summary>Outputs and gradients by name; <see cref="LinearAttentionMode.Chunk"/> with three segments.</summary>
    public Dictionary<string, Tensor> Run(LinearAttentionMode mode, Tensor?[] inputs) =>
        Gradients(leaves => Forward(mode, leaves), inputs);

    /// <summary>Output and final state; <see cref="LinearAttentionMode.Chunk"/> with three segments.</summary>
    public (Tensor, Tensor?) Forward(LinearAttentionMode mode, Tensor?[] x) => mode == LinearAttentionMode.Chunk || Portable
        ? new GlaParts(GlaChunkTile.MaxSize, GlaChunkTile.MaxSize).Run(x[0]!, x[1]!, x[2]!, x[3]!, x[4], (q, k, v, g, state) =>
            GlaChunkFunction.Run(q, k, v, g, 1 / Math.Sqrt(K), state, Sequences, Reverse, true,
                segments: mode == LinearAttentionMode.Chunk ? 3 : 1, Portable))
        : FlaOps.Gla(x[0]!, x[1]!, x[2]!, x[3]!, mode, initialState: x[4], outputFinalState: true,
            cuSeqlens: Offsets is null ? null : tensor(Offsets), reverse: Reverse);

    /// <summary>Fails unless all is within its limit. Writes the errors of the decays' gradient down, the largest.</summary>
    public static void Close(Dictionary<string, Tensor> actual, Dictionary<string, Tensor> expected, string what)
    {
        var part = actual["output"].dtype == ScalarType.Float32 ? Float32Part : 1;
        var outputLimit = actual["output"].shape[^1] <= 16 ? SmallOutputLimit : OutputLimit;
        foreach (var (name, value) in expected)
        {
            if (value.numel() == 0)
                continue;
            if (value.abs().max().ToDouble() < 1e-12) // all cancels: there is no scale to compare with
            {
                Assert.True(actual[name].abs().max().ToDouble() < 1e-6, $"{what}: {name} is not 0");
                continue;
            }
            var limit = part * (name == "output" ? outputLimit : name == "dg" ? DecayGradientLimit : GradientLimit);
            // A sum of q dq - k dk in float32: what lies below its resolution, as with decays of -20, is not there.
            if (name == "dg" && Rms(actual[name].to(float64) - value.to(float64)) <= Float32Resolution * Rms(expected["dq"]))
                continue;
            var error = Compare.RelativeRms(actual[name], value);
            if (name == "dg")
                TestContext.Current.TestOutputHelper?.WriteLine($"{what}: dg {error:E1}");
            Assert.True(error <= limit, $"{what}: {name} has a relative RMS error of {error:E2}, more than {limit:E1}.");
        }
    }

    private static double Rms(Tensor x)
    {
        using var wide = x.to(float64);
        return (wide * wide).mean().sqrt().ToDouble();
    }

    public static bool AreSame(Tensor x, Tensor y) => x.eq(y).all().ToBoolean();

    /// <summary>Fails unless all results have the same bits.</summary>
    public static void Same(Dictionary<string, Tensor> first, Dictionary<string, Tensor> second, string what)
    {
        foreach (var (name, value) in first)
            Assert.True(AreSame(value, second[name]), $"{what}: {name} differs.");
    }

    /// <summary>Outputs, and the gradients of a weighted sum of them.</summary>
    private static Dictionary<string, Tensor> Gradients(Func<Tensor?[], (Tensor, Tensor?)> operation, Tensor?[] inputs)
    {
        var leaves = Array.ConvertAll(inputs, input => input?.detach().requires_grad_());
        var (output, finalState) = operation(leaves);
        using var generator = new Generator(7);
        // Weights that every dtype holds exactly.
        Tensor Weights(Tensor x) => randint(-8, 9, x.shape, generator: generator).to(float64, CUDA) / 4;
        var loss = (output.to(float64) * Weights(output)).sum() + (finalState!.to(float64) * Weights(finalState)).sum();
        loss.Backward();

        var results = new Dictionary<string, Tensor> { ["output"] = output.detach(), ["finalState"] = finalState.detach() };
        foreach (var (name, leaf) in s_gradients.Zip(leaves))
            if (leaf is not null)
                results[name] = leaf.grad!;
        return results;
    }
}
