using FlaSharp.Ops;
using static TorchSharp.torch;

namespace Benchmarks.Measuring;

/// <summary>
/// An operation that does little for each byte: what it is measured by is the time that moving its tensors takes.
/// </summary>
/// <param name="Name">As --ops takes it.</param>
/// <param name="Operation">The function of <see cref="FlaOps"/>, as the doctor names it.</param>
/// <param name="ForwardTensors">Of [T, E], read or written.</param>
/// <param name="BackwardTensors">The same in backward.</param>
/// <param name="PeerKey">The name in the JSON of bench_peers.py for T and E; null if it has none.</param>
/// <param name="Run">The outputs of x, a second tensor like it, and the weights of <see cref="RowInputs"/>.</param>
internal sealed record RowOperation(
    string Name, string Operation, int ForwardTensors, int BackwardTensors, Func<long, long, string>? PeerKey,
    Func<RowInputs, Tensor[]> Run)
{
    public static IReadOnlyList<RowOperation> All { get; } =
    [
        new("conv1d", nameof(FlaOps.CausalConv1d), 2, 3, (time, channels) => $"causal_conv1d|B1_E{channels}_T{time}",
            i => [FlaOps.CausalConv1d(i.X, i.Taps, i.Bias, "silu").output]),
        new("gated_norm", nameof(FlaOps.GatedRmsNorm), 3, 5, (rows, size) => $"fla rmsnorm_gated|{rows}x{size}",
            i => [FlaOps.GatedRmsNorm(i.X, i.Second, i.Weight)]),
        new("norm_of_gated", nameof(FlaOps.GatedRmsNorm), 3, 5, null,
            i => [FlaOps.GatedRmsNorm(i.X, i.Second, i.Weight, normBeforeGate: false)]),
        new("norm", nameof(FlaOps.RmsNorm), 2, 3, null, i => [FlaOps.RmsNorm(i.X, i.Weight)]),
        new("add_norm", nameof(FlaOps.AddRmsNorm), 4, 5, null, i =>
        {
            (Tensor output, Tensor residual) = FlaOps.AddRmsNorm(i.X, i.Second, i.Weight);
            return [output, residual];
        }),
    ];

    public bool HasSecond => Operation is nameof(FlaOps.GatedRmsNorm) or nameof(FlaOps.AddRmsNorm);
}
