using System.Numerics;
using FlaSharp;
using FlaSharp.Layers;
using FlaSharp.Ops;
using LanguageModel;
using TorchSharp;
using static TorchSharp.torch;

namespace Benchmarks.Measuring;

/// <summary>A layer, and for gated linear attention its mode.</summary>
internal sealed record LayerChoice(string Name, LinearAttentionMode? Mode)
{
    public const string Gla = "GatedLinearAttention";
    public const string Attention = "SoftmaxAttention";

    private const double GlaExpandK = 0.5;
    private const int Mamba2StateSize = 128;

    public static IReadOnlyList<LayerChoice> All { get; } =
    [
        .. Enum.GetValues<LinearAttentionMode>().Select(mode => new LayerChoice(Gla, mode)),
        new("Mamba", null), new("Mamba2", null), new(Attention, null),
    ];

    /// <summary>The layer with FlaSharp's defaults.</summary>
    /// <exception cref="UserError">The sizes do not fit it.</exception>
    public SequenceLayer Create(long hidden, int heads, ScalarType dtype, Device device)
    {
        try
        {
            return Name switch
            {
                Gla => new GatedLinearAttention(hidden, heads, GlaExpandK, mode: Mode!.Value, device: device, dtype: dtype),
                "Mamba" => new Mamba(hidden, device: device, dtype: dtype),
                "Mamba2" => new Mamba2(hidden, headDim: Mamba2HeadDim(hidden), stateSize: Mamba2StateSize, device: device,
                    dtype: dtype),
                _ => new SoftmaxAttention(hidden, heads, device: device, dtype: dtype),
            };
        }
        catch (ArgumentException e)
        {
            throw new UserError($"These sizes do not make a layer {Name}: {e.Message.ReplaceLineEndings(" ")}");
        }
    }

    /// <summary>What computes it, and whether that is a recurrence of thousands of TorchSharp operations.</summary>
    public (string takes, bool isHopeless) Plan(long batch, long time, long hidden, int heads, ScalarType dtype, Device device)
    {
        if (Name == Attention)
            return (new AttentionShape(batch, time, heads, Math.Max(1, hidden / heads))
                .Takes(nameof(AttentionBackend.Auto), dtype, device), false);
        if (Mode is not { } mode)
            return (PlanOfMamba(batch, time, hidden, dtype, device), false);
        var shape = new GlaShape(batch, time, heads, Math.Max(1, (long)(hidden * GlaExpandK) / heads));
        return (GlaModes.Plan(shape, mode, dtype, device), GlaModes.IsHopeless(shape, mode, dtype, device));
    }

    /// <summary>What computes the recurrence of Mamba and Mamba-2.</summary>
    private string PlanOfMamba(long batch, long time, long hidden, ScalarType dtype, Device device)
    {
        using Tensor one = empty([1], dtype, device); // only the device, the dtype and the sizes count
        long inner = 2 * hidden, headDim = Mamba2HeadDim(hidden);
        if (Name == "Mamba")
        {
            using Tensor u = one.expand(batch, time, inner);
            return FlaOps.PlanSelectiveScan(u).Path;
        }

        using Tensor x = one.expand(batch, time, inner / headDim, headDim);
        return FlaOps.PlanSsd(x, Mamba2StateSize).Path;
    }

    public override string ToString() => Mode is { } mode ? $"{Name} {mode}" : Name;

    /// <summary>The greatest power of two up to 64 that divides the inner width.</summary>
    private static int Mamba2HeadDim(long hidden) => (int)Math.Min(64, 1L << BitOperations.TrailingZeroCount(2 * hidden));
}
