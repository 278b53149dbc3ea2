using FlaSharp.Kernels.Runtime;
using FlaSharp.Kernels.Ssd;
using FlaSharp.Ops;
using FlaSharp.Tests.Reference;
using FlaSharp.Tests.TestSupport;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Gpu;

/// <summary>A call of the state space duality on a GPU, to compare with the recurrence in float64.</summary>
internal sealed record SsdCase
{
    private const double OutputLimit = 4e-3;
    private const double GradientLimit = 6e-3;
    private const double SharedGradientLimit = 1e-2; // of rates: sums of differences

    private static readonly string[] s_names = ["x", "dt", "a", "b", "c", "d", "z", "dtBias", "initialState"];

    public int B { get; init; } = 1;

    public int T { get; init; } = 150;

    public int H { get; init; } = 2;

    public int G { get; init; } = 1;

    public int P { get; init; } = 64;

    public int N { get; init; } = 64;

    public double Rate { get; init; } = 1;

    public ScalarType Dtype { get; init; } = ScalarType.BFloat16;

    public ScalarType? StepDtype { get; init; }

    public bool DirectPerChannel { get; init; }

    public bool HasGate { get; init; }

    public bool HasInitialState { get; init; } = true;

    /// <summary>Whether the rates are given as logarithms.</summary>
    public bool HasLogRates { get; init; }

    public bool Softplus { get; init; } = true;

    public (double min, double max)? Limit { get; init; }

    public int[]? Offsets { get; init; }

    public Sequences Sequences => Sequences.Of(B, T, CuSeqlens);

    public Tensor? CuSeqlens => Offsets is null ? null : tensor(Offsets);

    /// <summary>By the names of <see cref="FlaOps.Ssd"/>'s parameters.</summary>
    public Dictionary<string, Tensor?> Inputs(ulong seed = 1)
    {
        using var generator = new Generator(seed); // TorchSharp has them for the CPU alone
        Tensor Random(params long[] shape) => randn(shape, generator: generator).cuda();
        var states = Offsets is null ? B : Offsets.Length - 1;
        var dt = Random(B, T, H);
        return new()
        {
            ["x"] = Random(B, T, H, P).to(Dtype),
            ["dt"] = (Softplus ? dt : dt.abs()).to(StepDtype ?? Dtype),
            ["a"] = -(Random(H) / 2).exp() * Rate,
            ["b"] = Random(B, T, G, N).to(Dtype),
            ["c"] = Random(B, T, G, N).to(Dtype),
            ["d"] = DirectPerChannel ? Random(H, P) : Random(H),
            ["z"] = HasGate ? Random(B, T, H, P).to(Dtype) : null,
            ["dtBias"] = Softplus ? Random(H) - 1 : null,
            ["initialState"] = HasInitialState ? Random(states, H, P, N) : null,
        };
    }

    /// <summary>Fails unless outputs and gradients, of one segment and of several, agree with float64.</summary>
    public void Check(Dictionary<string, Tensor?>? inputs = null)
    {
        using var scope = NewDisposeScope();
        inputs ??= Inputs();
        // What all tokens share, token by token: for the size of a sum that may cancel.
        var terms = inputs.ToDictionary(pair => pair.Key, pair => pair.Value?.detach().cpu().to(float64));
        foreach (var name in new[] { "a", "dtBias" })
            terms[name] = terms[name]?.expand(B, T, H).clone();
        var direct = terms["d"]!;
        direct = direct.dim() == 1 ? direct.unsqueeze(-1) : direct;
        terms["d"] = direct.expand([B, T, .. direct.shape]).clone();
        var expected = Gradients(terms, x => NaiveSsd.Run(x["x"]!, x["dt"]!, x["a"]!, x["b"]!, x["c"]!, x["d"], x["z"],
            x["dtBias"], Softplus, Limit, x["initialState"], Offsets is null ? null : Array.ConvertAll(Offsets, offset => (long)offset)));
        Close(Run(inputs), expected, $"{this}");
        Close(Gradients(inputs, Segmented), expected, $"{this} in segments");
    }

    /// <summary>Outputs and gradients by name.</summary>
    public Dictionary<string, Tensor> Run(Dictionary<string, Tensor?> inputs) => Gradients(inputs, Forward);

    public (Tensor output, Tensor? finalState) Forward(Dictionary<string, Tensor?> x) => FlaOps.Ssd(x["x"]!, x["dt"]!,
        HasLogRates ? (-x["a"]!).log() : x["a"]!, x["b"]!, x["c"]!, x["d"], x["z"], x["dtBias"], Softplus, Limit,
        x["initialState"], outputFinalState: true, CuSeqlens, aIsLog: HasLogRates);

    public override string ToString() => $"B={B} T={T} H={H} G={G} P={P} N={N} rate={Rate} {Dtype}"
        + (Offsets is null ? "" : $" offsets [{string.Join(", ", Offsets)}]") + (HasGate ? " gated" : "");

    /// <summary>In three segments, the gate an operation of its own.</summary>
    private (Tensor output, Tensor? finalState) Segmented(Dictionary<string, Tensor?> x)
    {
        var tile = SsdTile.Choose(P, N, Dtype == ScalarType.Float16 ? ElementType.Float16 : ElementType.BFloat16,
            GpuDevice.Get(0).Target!, out var reason) ?? throw new NotSupportedException(reason);
        var outputs = new SsdChunkFunction(tile, new(Softplus, Limit), Sequences, outputFinalState: true, segments: 3)
            .Run(x["x"], x["dt"], x["a"], x["b"], x["c"], x["d"], x["dtBias"], x["initialState"]);
        return (x["z"] is { } z ? FlaOps.SwiGlu(z, outputs[0]!) : outputs[0]!, outputs[1]);
    }

    private void Close(Dictionary<string, Tensor> actual, Dictionary<string, Tensor> expected, string what)
    {
        foreach (var (name, value) in expected)
            if (name is "a" or "dtBias" or "d")
                Compare.SumClose(actual[name], value, SharedGradientLimit, $"{what}: gradient of {name}");
            else
                Compare.Close(actual[name], value, name == "output" ? OutputLimit : GradientLimit, $"{what}: {name}");
    }

    /// <summary>Outputs, and the gradients of a weighted sum of them.</summary>
    private static Dictionary<string, Tensor> Gradients(
        Dictionary<string, Tensor?> inputs, Func<Dictionary<string, Tensor?>, (Tensor, Tensor?)> operation)
    {
        var leaves = inputs.ToDictionary(pair => pair.Key, pair => pair.Value?.detach().requires_grad_());
        var (output, finalState) = operation(leaves);
        using var generator = new Generator(7);
        // Weights that every dtype holds exactly.
        Tensor Weights(Tensor x) => randint(-8, 9, x.shape, generator: generator).to(float64, x.device) / 4;
        var loss = (output.to(float64) * Weights(output)).sum() + (finalState!.to(float64) * Weights(finalState)).sum();
        loss.Backward();
        var results = new Dictionary<string, Tensor> { ["output"] = output.detach(), ["finalState"] = finalState.detach() };
        foreach (var name in s_names)
            if (leaves[name] is { } leaf)
                results[name] = leaf.grad!;
        return results;
    }
}
