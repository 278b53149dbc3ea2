using FlaSharp.Ops;
using FlaSharp.Tests.TestSupport;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Gpu;

/// <summary>Every operation on the GPU gives what it gives on the CPU: outputs, states and all gradients, in float32.</summary>
public sealed class OpsOnGpuTests
{
    [GpuFact]
    public void Gla_in_every_mode()
    {
        foreach (var mode in Enum.GetValues<LinearAttentionMode>())
            foreach (var (heads, kvHeads) in new[] { (3, 3), (4, 2) })
                SameOnBothDevices($"Gla {mode} H={heads} Hkv={kvHeads}",
                    x => Outputs(FlaOps.Gla(x[0], x[1], x[2], -nn.functional.softplus(x[3]), mode, initialState: x[4], outputFinalState: true)),
                    [2, 100, heads, 24], [2, 100, kvHeads, 24], [2, 100, kvHeads, 40], [2, 100, kvHeads, 24], [2, heads, 24, 40]);
    }

    [GpuFact]
    public void Gla_packed_with_resets()
    {
        var cuSeqlens = tensor(new long[] { 0, 15, 15, 80, 150 });
        foreach (var mode in Enum.GetValues<LinearAttentionMode>())
            SameOnBothDevices($"Gla {mode} packed",
                x => Outputs(FlaOps.Gla(x[0], x[1], x[2], WithResets(-nn.functional.softplus(x[3])), mode, initialState: x[4],
                    outputFinalState: true, cuSeqlens: cuSeqlens)),
                [1, 150, 2, 16], [1, 150, 2, 16], [1, 150, 2, 8], [1, 150, 2, 16], [4, 2, 16, 8]);
    }

    [GpuFact]
    public void SelectiveScan() =>
        SameOnBothDevices("SelectiveScan",
            x => Outputs(FlaOps.SelectiveScan(x[0], x[1], -x[2].exp(), x[3], x[4], x[5], x[6], x[7], deltaSoftplus: true,
                initialState: x[8], outputFinalState: true)),
            [2, 90, 24], [2, 90, 24], [24, 16], [2, 90, 2, 16], [2, 90, 2, 16], [24], [2, 90, 24], [24], [2, 24, 16]);

    [GpuFact]
    public void Ssd() =>
        SameOnBothDevices("Ssd",
            x => Outputs(FlaOps.Ssd(x[0], x[1], -x[2].exp(), x[3], x[4], x[5], x[6], x[7], dtSoftplus: true,
                initialState: x[8], outputFinalState: true)),
            [2, 150, 4, 16], [2, 150, 4], [4], [2, 150, 2, 32], [2, 150, 2, 32], [4], [2, 150, 4, 16], [4], [2, 4, 16, 32]);

    [GpuFact]
    public void CausalConv1d() =>
        SameOnBothDevices("CausalConv1d",
            x => Outputs(FlaOps.CausalConv1d(x[0], x[1], x[2], "silu", x[3], outputFinalState: true)),
            [2, 50, 33], [33, 4], [33], [2, 33, 3]);

    [GpuFact]
    public void Attention()
    {
        foreach (var window in new int?[] { null, 16 })
            SameOnBothDevices($"Attention window={window}",
                x => [FlaOps.Attention(x[0], x[1], x[2], window: window)], [2, 70, 4, 32], [2, 90, 2, 32], [2, 90, 2, 32]);
        SameOnBothDevices("Attention with sinks and softcap",
            x => [FlaOps.Attention(x[0], x[1], x[2], softcap: 20, sinks: x[3])], [2, 70, 4, 32], [2, 70, 2, 32], [2, 70, 2, 24], [4]);
    }

    [GpuFact]
    public void Norms_and_rotary()
    {
        SameOnBothDevices("RmsNorm", x => [FlaOps.RmsNorm(x[0], x[1])], [3, 7, 48], [48]);
        SameOnBothDevices("GatedRmsNorm", x => [FlaOps.GatedRmsNorm(x[0], x[1], x[2])], [3, 7, 48], [3, 7, 48], [48]);
        SameOnBothDevices("GatedRmsNorm in groups",
            x => [FlaOps.GatedRmsNorm(x[0], x[1], x[2], normBeforeGate: false, groupSize: 16)], [3, 7, 48], [3, 7, 48], [48]);
        SameOnBothDevices("RotaryEmbedding",
            x => [FlaOps.RotaryEmbedding(x[0], arange(30, device: x[0].device))], [2, 30, 3, 16]);
    }

    private static Tensor?[] Outputs((Tensor output, Tensor? finalState) result) => [result.output, result.finalState];

    private static Tensor WithResets(Tensor g)
    {
        var resets = zeros_like(g);
        resets[.., TensorIndex.Slice(step: 9)] = float.NegativeInfinity;
        return g + resets;
    }

    private static void SameOnBothDevices(string what, Func<Tensor[], Tensor?[]> op, params long[][] shapes)
    {
        using var scope = NewDisposeScope();
        using var generator = new Generator(7);
        var values = Array.ConvertAll(shapes, shape => randn(shape, generator: generator));
        var onCpu = Run(values, CPU);
        var onGpu = Run(values, CUDA);
        for (var i = 0; i < onCpu.Length; i++)
            Compare.Close(onGpu[i].cpu(), onCpu[i], 5e-5, $"{what}, result {i}");

        Tensor[] Run(Tensor[] inputs, Device device)
        {
            var leaves = Array.ConvertAll(inputs, input => input.to(device).clone().requires_grad_());
            var outputs = op(leaves).OfType<Tensor>().ToArray();
            using var weights = new Generator(11);
            var loss = zeros(1, device: device);
            foreach (var output in outputs)
                loss = loss + (output * randn(output.shape, generator: weights).to(device)).sum();
            loss.Backward();
            return [.. outputs.Select(output => output.detach()), .. leaves.Select(leaf => leaf.grad!)];
        }
    }
}
