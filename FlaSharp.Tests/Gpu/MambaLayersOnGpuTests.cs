using FlaSharp.Interop;
using FlaSharp.Layers;
using FlaSharp.Tests.TestSupport;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Gpu;

/// <summary>Mamba and Mamba-2 on the GPU at sizes that their kernels take, and the same layer on the CPU in float32.</summary>
public sealed class MambaLayersOnGpuTests
{
    private const int HiddenSize = 64;

    public static TheoryData<string, ScalarType> Cases => new()
    {
        { "mamba", ScalarType.Float32 }, { "mamba", ScalarType.BFloat16 },
        { "mamba2", ScalarType.Float32 }, { "mamba2", ScalarType.BFloat16 },
    };

    [GpuTheory, MemberData(nameof(Cases))]
    public void Lengths(string name, ScalarType dtype)
    {
        using var noGrad = no_grad();
        foreach (var time in new[] { 1, 2, 17, 64, 1000, 65_536 })
        {
            using var scope = NewDisposeScope();
            var (layer, reference) = Make(name, dtype);
            using (layer)
            using (reference)
            {
                var x = Input(1, time).to(dtype);
                Compare.Close(layer.forward(x.to(CUDA)).cpu(), reference.forward(x.to(float32)), Limit(dtype),
                    $"{name}, {time} tokens");
            }
        }
    }

    [GpuTheory, MemberData(nameof(Cases))]
    public void Prefill_and_steps_in_place_give_one_pass(string name, ScalarType dtype)
    {
        using var scope = NewDisposeScope();
        using var noGrad = no_grad();
        var (layer, reference) = Make(name, dtype);
        reference.Dispose();
        using (layer)
        {
            var x = Input(3, 120).to(dtype, CUDA);
            using var fullState = new LayerState();
            var whole = layer.forward(x, null, null, fullState);
            using var state = new LayerState();
            var parts = new List<Tensor> { layer.forward(x.narrow(1, 0, 90), null, null, state) };
            var places = Places(state);
            for (int start = 90, length = 1; start < 120; start += length)
            {
                length = Math.Min(start % 5 + 1, 120 - start);
                parts.Add(layer.forward(x.narrow(1, start, length), null, null, state));
                Assert.Equal(places, Places(state));
            }
            Compare.Close(cat(parts, 1), whole, Limit(dtype), $"{name}: output");
            Compare.Close(state["recurrent"]!, fullState["recurrent"]!, Limit(dtype), $"{name}: state");
            Compare.Close(state["conv"]!, fullState["conv"]!, Limit(dtype), $"{name}: last inputs");
        }

        static (nint, nint) Places(LayerState state) =>
            (TensorPointer.Of(state["recurrent"]!), TensorPointer.Of(state["conv"]!));
    }

    [GpuTheory, MemberData(nameof(Cases))]
    public void Padded_and_packed_rows_train_as_on_the_CPU(string name, ScalarType dtype)
    {
        using var scope = NewDisposeScope();
        var (layer, reference) = Make(name, dtype);
        using (layer)
        using (reference)
        {
            var mask = ones(3, 150, dtype: int64);
            mask[0, ..40] = 0; // left
            mask[1, 100..] = 0; // right
            mask[2, 50..60] = 0; // between
            Check(3, mask, null, "padded");
            Check(1, null, tensor(new long[] { 0, 0, 1, 70, 70, 150 }), "packed");

            void Check(int batch, Tensor? attentionMask, Tensor? cuSeqlens, string what)
            {
                var x = Input(batch, 150).to(dtype);
                var weights = Input(batch, 150, seed: 5).to(dtype);
                var expected = Train(reference, x.to(float32), weights.to(float32), attentionMask, cuSeqlens);
                var actual = Train(layer, x.to(CUDA), weights.to(CUDA), attentionMask?.to(CUDA), cuSeqlens);
                foreach (var (part, value) in expected)
                    Compare.Close(actual[part].cpu(), value, GradientLimit(dtype), $"{name}, {what}: {part}");
                if (attentionMask is not null)
                    Assert.Equal(0, (actual["gradient of x"].cpu() * (1 - attentionMask).unsqueeze(-1)).abs().sum().ToDouble());
            }
        }
    }

    [GpuTheory, MemberData(nameof(Cases))]
    public void Training_repeats_bit_by_bit(string name, ScalarType dtype)
    {
        using var scope = NewDisposeScope();
        var (layer, reference) = Make(name, dtype);
        reference.Dispose();
        using (layer)
        {
            var (x, weights) = (Input(1, 2000).to(dtype, CUDA), Input(1, 2000, seed: 5).to(dtype, CUDA));
            var bounds = tensor(new long[] { 0, 700, 700, 2000 });
            var first = Train(layer, x, weights, null, bounds);
            for (var run = 1; run < 5; run++)
                Gradients.Same(first, Train(layer, x, weights, null, bounds), $"{name}, run {run}");
        }
    }

    /// <summary>A layer on the GPU, and one of the same weights on the CPU in float32.</summary>
    private static (SequenceLayer layer, SequenceLayer reference) Make(string name, ScalarType dtype)
    {
        manual_seed(1);
        var (layer, reference) = (New(), New());
        layer.to(dtype);
        reference.load_state_dict(layer.state_dict());
        layer.to(CUDA);
        return (layer, reference);

        SequenceLayer New() => name == "mamba"
            ? new Mamba(HiddenSize)
            : new Mamba2(HiddenSize, headDim: 32, stateSize: 64, nGroups: 2);
    }

    private static Dictionary<string, Tensor> Train(
        SequenceLayer layer, Tensor x, Tensor weights, Tensor? attentionMask, Tensor? cuSeqlens)
    {
        layer.zero_grad();
        var leaf = x.detach().requires_grad_();
        var y = layer.forward(leaf, attentionMask, cuSeqlens);
        y.Backward(weights);
        var results = new Dictionary<string, Tensor> { ["output"] = y.detach(), ["gradient of x"] = leaf.grad! };
        foreach (var (name, parameter) in layer.named_parameters())
            results[$"gradient of {name}"] = parameter.grad!.clone();
        return results;
    }

    private static Tensor Input(long batch, long time, int seed = 3) =>
        randn([batch, time, HiddenSize], generator: new Generator((ulong)seed));

    private static double Limit(ScalarType dtype) => dtype == ScalarType.Float32 ? 1e-4 : 2e-2;

    private static double GradientLimit(ScalarType dtype) => dtype == ScalarType.Float32 ? 1e-4 : 4e-2;
}
