using FlaSharp.Layers;
using FlaSharp.Tests.Layers;
using FlaSharp.Tests.TestSupport;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Gpu;

/// <summary>Every layer on the GPU gives what it gives on the CPU, in float32, and comes near it in bfloat16.</summary>
public sealed class LayersOnGpuTests
{
    public static TheoryData<string> Names => LayerCases.Names;

    [GpuTheory, MemberData(nameof(Names))]
    public void Outputs_and_gradients(string name)
    {
        using var scope = NewDisposeScope();
        using var layer = LayerCases.Make(name);
        var expected = OutputAndGradients(layer, CPU);
        layer.to(CUDA);
        var actual = OutputAndGradients(layer, CUDA);
        foreach (var (what, tensor) in expected)
            Compare.Close(actual[what].cpu(), tensor, 1e-4, $"{name}: {what}");
    }

    [GpuFact]
    public void Weights_follow_the_seed()
    {
        using var scope = NewDisposeScope();
        Assert.True(Weight(3).equal(Weight(3)).all().ToBoolean());
        Assert.False(Weight(3).equal(Weight(4)).any().ToBoolean());

        static Tensor Weight(long seed)
        {
            manual_seed(seed);
            using var layer = new GatedLinearAttention(64, device: CUDA);
            return layer.get_parameter("q_proj.weight")!.detach().clone();
        }
    }

    [GpuTheory, MemberData(nameof(Names))]
    public void Padding_and_a_state(string name)
    {
        using var scope = NewDisposeScope();
        using var noGrad = no_grad();
        using var layer = LayerCases.Make(name);
        var x = LayerCases.Input(2, 30);
        var mask = ones(2, 30, dtype: int64);
        mask[1, ..7] = 0;
        var expected = layer.forward(x, mask);
        layer.to(CUDA);
        Compare.Close(layer.forward(x.cuda(), mask.cuda()).cpu(), expected, 1e-4, $"{name} with left padding");

        using var state = new LayerState();
        var parts = new List<Tensor>();
        foreach (var (start, length) in new[] { (0, 17), (17, 1), (18, 1), (19, 11) })
            parts.Add(layer.forward(x.cuda().narrow(1, start, length), mask.cuda().narrow(1, start, length), null, state));
        Compare.Close(cat(parts, 1).cpu(), expected, 1e-4, $"{name} in parts");
    }

    [GpuTheory, MemberData(nameof(Names))]
    public void Bfloat16(string name)
    {
        using var scope = NewDisposeScope();
        using var layer = LayerCases.Make(name);
        layer.to(bfloat16);
        var x = LayerCases.Input(2, 40).to(bfloat16);
        using var reference = LayerCases.Make(name);
        reference.load_state_dict(layer.state_dict());
        var expected = reference.forward(x.to(float32));
        layer.to(CUDA);
        Compare.Close(layer.forward(x.cuda()).cpu(), expected, 0.02, name);
    }

    private static Dictionary<string, Tensor> OutputAndGradients(SequenceLayer layer, Device device)
    {
        layer.zero_grad();
        var x = LayerCases.Input(2, 70).to(device).requires_grad_();
        var y = layer.forward(x);
        y.Backward(LayerCases.Input(2, 70, seed: 5).to(device));
        var results = new Dictionary<string, Tensor> { ["output"] = y.detach(), ["gradient of x"] = x.grad! };
        foreach (var (name, parameter) in layer.named_parameters())
            results[$"gradient of {name}"] = parameter.grad!.clone();
        return results;
    }
}
