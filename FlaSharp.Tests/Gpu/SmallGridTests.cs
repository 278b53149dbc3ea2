using FlaSharp.Ops;
using FlaSharp.Tests.TestSupport;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Gpu;

/// <summary>
/// A few small calls that reach every CUDA kernel: what compute-sanitizer watches (eng/record-gpu-run.py --sanitizers).
/// </summary>
public sealed class SmallGridTests
{
    private static readonly int[] s_offsets = [0, 17, 17, 100, 130];
    private static readonly long[] s_longOffsets = Array.ConvertAll(s_offsets, offset => (long)offset);

    [GpuTheory]
    [InlineData(7, 13, ScalarType.BFloat16)]
    [InlineData(16, 8, ScalarType.BFloat16)]
    [InlineData(20, 33, ScalarType.BFloat16)]
    [InlineData(64, 64, ScalarType.BFloat16)]
    [InlineData(64, 64, ScalarType.Float16)]
    [InlineData(128, 128, ScalarType.BFloat16)]
    [InlineData(256, 128, ScalarType.BFloat16)]
    [InlineData(256, 256, ScalarType.BFloat16)] // in clusters on a Hopper GPU
    public void Gla_over_chunks(int keySize, int valueSize, ScalarType dtype)
    {
        var shape = new GlaCase { T = 130, K = keySize, V = valueSize, Dtype = dtype };
        shape.Check();
        (shape with { KvHeads = 1, Offsets = s_offsets, Decay = GlaCase.SomeResets }).Check();
    }

    // On a Hopper GPU clusters have them: of one block, of many, and of three large ones.
    [GpuTheory]
    [InlineData(1, 60)]
    [InlineData(1, 600)]
    [InlineData(13, 600)]
    public void Gla_of_small_heads(int batch, int time)
    {
        var shape = new GlaCase { B = batch, T = time, H = 8, K = 8, V = 8, Decay = GlaCase.SomeResets };
        shape.Check();
        shape = shape with { KvHeads = 2 };
        (batch > 1 ? shape : shape with { Offsets = [0, 17, 17, 40, time] }).Check();
    }

    [GpuTheory]
    [InlineData(20, 33, ScalarType.Float32)]
    [InlineData(64, 64, ScalarType.BFloat16)]
    [InlineData(300, 16, ScalarType.Float32)]
    public void Gla_step_by_step(int keySize, int valueSize, ScalarType dtype)
    {
        var shape = new GlaCase { T = 130, K = keySize, V = valueSize, Dtype = dtype };
        shape.Check(null, LinearAttentionMode.FusedRecurrent);
        (shape with { KvHeads = 1, Offsets = s_offsets }).Check(null, LinearAttentionMode.FusedRecurrent);
    }

    public static TheoryData<int, int, ScalarType> AttentionHeads => new()
    {
        { 16, 16, ScalarType.BFloat16 }, { 59, 40, ScalarType.BFloat16 }, { 64, 64, ScalarType.Float16 },
        { 96, 96, ScalarType.BFloat16 }, { 128, 128, ScalarType.BFloat16 }, { 192, 128, ScalarType.BFloat16 },
        { 256, 256, ScalarType.BFloat16 },
    };

    [GpuTheory]
    [MemberData(nameof(AttentionHeads))]
    public void Softmax_attention(int keySize, int valueSize, ScalarType dtype) =>
        CheckAttention(new() { K = keySize, V = valueSize, Dtype = dtype });

    [GpuTheory]
    [MemberData(nameof(AttentionHeads))]
    public void Softmax_attention_on_the_portable_path(int keySize, int valueSize, ScalarType dtype) =>
        CheckAttention(new() { K = keySize, V = valueSize, Dtype = dtype, Portable = true });

    [GpuTheory]
    [InlineData(7, ScalarType.Float32)]
    [InlineData(64, ScalarType.BFloat16)]
    [InlineData(1025, ScalarType.BFloat16)]
    [InlineData(5000, ScalarType.Float32)]
    public void Norms(int size, ScalarType dtype)
    {
        foreach (var normBeforeGate in new[] { true, false })
        {
            using var scope = NewDisposeScope();
            manual_seed(1);
            Tensor Input(params long[] shape) => randn(shape).to(CUDA).to(dtype).requires_grad_();
            var (x, z, weight) = (Input(9, size), Input(9, size), Input(size));
            var y = FlaOps.GatedRmsNorm(x, z, weight, normBeforeGate: normBeforeGate);
            var (normed, sum) = FlaOps.AddRmsNorm(x, z, weight);
            var plain = FlaOps.RmsNorm(x, weight);
            (y + normed + sum + plain).sum().Backward();
            foreach (var result in new[] { y, normed, sum, plain, x.grad!, z.grad!, weight.grad! })
                Assert.True(result.isfinite().all().ToBoolean());
        }
    }

    [GpuTheory]
    [InlineData(33, 4, ScalarType.Float32)]
    [InlineData(64, 4, ScalarType.BFloat16)]
    [InlineData(64, 2, ScalarType.Float16)]
    [InlineData(19, 9, ScalarType.BFloat16)]
    public void Convolutions(int channels, int width, ScalarType dtype)
    {
        CausalConvKernelTests.Check(CausalConvKernelTests.Inputs(2, 130, channels, width, dtype), silu: true, null);
        CausalConvKernelTests.Check(
            CausalConvKernelTests.Inputs(4, 130, channels, width, dtype, packed: true), silu: false, s_longOffsets);

        using var scope = NewDisposeScope();
        using var noGrad = no_grad();
        var inputs = CausalConvKernelTests.Inputs(2, 7, channels, width, dtype);
        InPlace(inputs["initialState"], 7, (state, start, length, update) => FlaOps.CausalConv1d(
            inputs["x"].narrow(1, start, length), inputs["weight"], inputs["bias"], "silu", state, true, updateState: update));
    }

    [GpuTheory]
    [InlineData(40, 16, 1, ScalarType.Float32)]
    [InlineData(64, 16, 1, ScalarType.BFloat16)]
    [InlineData(33, 1, 3, ScalarType.Float16)]
    [InlineData(24, 40, 2, ScalarType.BFloat16)]
    public void Selective_scans(int channels, int states, int groups, ScalarType dtype)
    {
        SelectiveScanKernelTests.Check(
            SelectiveScanKernelTests.Inputs(1, 130, channels, states, groups), segments: 1, dtype: dtype);
        foreach (var segments in new[] { 2, 3 }) // narrow and wide
            SelectiveScanKernelTests.Check(SelectiveScanKernelTests.Inputs(4, 130, channels, states, groups, packed: true),
                softplus: true, s_longOffsets, segments, dtype);

        using var scope = NewDisposeScope();
        using var noGrad = no_grad();
        var inputs = SelectiveScanKernelTests.Inputs(2, 7, channels, states, groups);
        Tensor Part(string name, long start, long length) => inputs[name].narrow(1, start, length).to(dtype, CUDA);
        Tensor Whole(string name) => inputs[name].cuda();
        InPlace(Whole("initialState"), 7, (state, start, length, update) => FlaOps.SelectiveScan(
            Part("u", start, length), Part("delta", start, length), Whole("a"), Part("b", start, length),
            Part("c", start, length), Whole("d"), Part("z", start, length), Whole("deltaBias"), deltaSoftplus: true, state, true,
            updateState: update));
    }

    [GpuTheory]
    [InlineData(16, 16, ScalarType.BFloat16)]
    [InlineData(30, 21, ScalarType.BFloat16)]
    [InlineData(64, 64, ScalarType.Float16)]
    [InlineData(64, 128, ScalarType.BFloat16)]
    [InlineData(128, 128, ScalarType.BFloat16)]
    public void State_space_duality(int headSize, int stateSize, ScalarType dtype)
    {
        new SsdCase { T = 130, P = headSize, N = stateSize, Dtype = dtype, HasGate = true }.Check();
        new SsdCase { T = 130, H = 4, G = 2, P = headSize, N = stateSize, Dtype = dtype, Offsets = s_offsets }.Check();
    }

    [GpuFact]
    public void State_space_duality_of_the_largest_heads()
    {
        using var scope = NewDisposeScope();
        var shape = new SsdCase { P = 256, N = 256 };
        foreach (var (name, result) in shape.Run(shape.Inputs()))
            Assert.True(result.isfinite().all().ToBoolean(), name);
    }

    [GpuTheory]
    [InlineData(64, 128, ScalarType.BFloat16)]
    [InlineData(30, 21, ScalarType.Float32)]
    public void State_space_duality_step_by_step(int headSize, int stateSize, ScalarType dtype)
    {
        using var scope = NewDisposeScope();
        using var noGrad = no_grad();
        var shape = new SsdCase { B = 2, T = 7, H = 4, G = 2, P = headSize, N = stateSize, Dtype = dtype, HasGate = true };
        var inputs = shape.Inputs();
        Tensor Part(string name, long start, long length) => inputs[name]!.narrow(1, start, length);
        InPlace(inputs["initialState"]!, 7, (state, start, length, update) => FlaOps.Ssd(
            Part("x", start, length), Part("dt", start, length), inputs["a"]!, Part("b", start, length), Part("c", start, length),
            inputs["d"], Part("z", start, length), inputs["dtBias"], dtSoftplus: true, null, state, true, updateState: update));
    }

    [GpuFact]
    public void Rotary_positions()
    {
        using var scope = NewDisposeScope();
        foreach (var (size, dtype) in new[] { (64, ScalarType.BFloat16), (7, ScalarType.Float32), (40, ScalarType.Float16) })
            foreach (var interleaved in new[] { false, true })
                RotaryKernelTests.Check(randn(2, 9, 3, size).to(dtype), arange(9), interleaved, size / 2 * 2);
    }

    [GpuTheory]
    [InlineData(64, 64)]
    [InlineData(128, 128)]
    [InlineData(256, 200)]
    [InlineData(33, 20)]
    public void Attention_over_a_cache(int keySize, int valueSize)
    {
        var shape = new AttentionDecodeKernelTests.Case { KeySize = keySize, ValueSize = valueSize };
        shape.Check([3, 200, 65]);
        (shape with { Queries = 3, Window = 20, Capacity = 64, Run = 64, HasSinks = true, HasSlopes = true }).Check([3, 200, 65]);
    }

    [GpuFact]
    public void Decoding_steps() =>
        new AttentionDecodeKernelTests().A_layer_steps_like_one_pass(20, 10000.0, ScalarType.BFloat16);

    [GpuFact]
    public void Decay_gates()
    {
        using var scope = NewDisposeScope();
        var x = randn(new long[] { 3, 33, 50 }).to(CUDA).requires_grad_();
        new DecayGateCudaFunction(16, null).Run(x)[0]!.sum().Backward();
        Assert.True(x.grad!.isfinite().all().ToBoolean());
    }

    [GpuFact]
    public void Gated_activations()
    {
        using var scope = NewDisposeScope();
        var gate = randn(new long[] { 3, 33, 50 }).to(CUDA).requires_grad_();
        FlaOps.SwiGlu(gate, gate + 1).sum().Backward();
        Assert.True(gate.grad!.isfinite().all().ToBoolean());
    }

    /// <summary>One token, then several, with the state written over in place, give what one call gives.</summary>
    private static void InPlace(
        Tensor initialState, long time, Func<Tensor, long, long, bool, (Tensor output, Tensor? finalState)> operation)
    {
        var (whole, wholeState) = operation(initialState, 0, time, false);
        var state = initialState.clone();
        var outputs = new List<Tensor>();
        foreach (var (start, length) in new[] { (0L, 1L), (1L, time - 1) })
        {
            var (output, after) = operation(state, start, length, true);
            Assert.Same(state, after);
            outputs.Add(output);
        }
        Compare.Close(cat(outputs, 1), whole, 1e-4, "output"); // a last bit of 16 may differ
        Compare.Close(state, wholeState!, 1e-6, "state");
    }

    private static void CheckAttention(AttentionCase shape)
    {
        shape.Check();
        (shape with { Queries = 70, H = 4, KvHeads = 2, Keys = 200, Causal = false, HasSinks = true, Softcap = 5 }).Check();
        (shape with { KvHeads = 1, Offsets = s_longOffsets }).Check();
        (shape with { KvHeads = 1, Offsets = s_longOffsets, Window = 20, HasSlopes = true }).Check();

        using var scope = NewDisposeScope();
        var dropped = shape with { Dropout = 0.2 };
        foreach (var (name, result) in dropped.Run(dropped.Inputs()))
            Assert.True(result.isfinite().all().ToBoolean(), name);
    }
}
