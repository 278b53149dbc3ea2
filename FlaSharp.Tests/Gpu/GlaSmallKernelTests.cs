using FlaSharp.Ops;
using FlaSharp.Tests.TestSupport;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Gpu;

/// <summary>
/// The CUDA kernels of gated linear attention for small heads: outputs, states and all gradients against float64, in memory that is
/// NaN before (<see cref="PoisonedMemory"/>).
/// </summary>
public sealed class GlaSmallKernelTests
{
    [GpuTheory]
    [InlineData(1, 1)]
    [InlineData(1, 16)]
    [InlineData(5, 15)]
    [InlineData(15, 5)]
    [InlineData(8, 8)]
    [InlineData(8, 16)]
    [InlineData(16, 8)]
    [InlineData(16, 16)]
    [InlineData(12, 4)]
    public void Head_sizes(int keySize, int valueSize)
    {
        Check(new GlaCase { T = 300, K = keySize, V = valueSize });
        Check(new GlaCase { T = 300, K = keySize, V = valueSize, Decay = GlaCase.SomeResets, HasInitialState = false });
    }

    [GpuTheory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(15)]
    [InlineData(16)]
    [InlineData(17)]
    [InlineData(64)]
    [InlineData(65)]
    [InlineData(128)]
    [InlineData(129)]
    [InlineData(256)]
    [InlineData(257)]
    [InlineData(1024)]
    public void Lengths(int time)
    {
        foreach (var size in new[] { 8, 16 })
            Check(new GlaCase { B = 2, T = time, K = size, V = size });
    }

    [GpuTheory]
    [InlineData(GlaCase.ZeroGate)]
    [InlineData(GlaCase.WeakGate)]
    [InlineData(GlaCase.Gate)]
    [InlineData(GlaCase.FarGate)]
    [InlineData(GlaCase.FarShortGate)]
    [InlineData(GlaCase.StrongGate)]
    [InlineData(GlaCase.StrongerGate)]
    [InlineData(GlaCase.SomeResets)]
    [InlineData(GlaCase.AllResets)]
    [InlineData(GlaCase.MixedGate)]
    [InlineData(GlaCase.AlternatingGate)]
    public void Decays(string decay)
    {
        Check(new GlaCase { T = 300, Decay = decay, K = 16, V = 16 });
        Check(new GlaCase { T = 300, Decay = decay, K = 8, V = 8, GateDtype = ScalarType.Float32 });
    }

    [GpuTheory]
    [InlineData(ScalarType.BFloat16, ScalarType.Float32)]
    [InlineData(ScalarType.Float16, ScalarType.Float16)]
    [InlineData(ScalarType.Float16, ScalarType.Float32)]
    public void Dtypes(ScalarType dtype, ScalarType gate)
    {
        foreach (var (keySize, valueSize) in new[] { (16, 16), (8, 8), (7, 13) })
            Check(new GlaCase { Dtype = dtype, GateDtype = gate, K = keySize, V = valueSize, Decay = GlaCase.SomeResets });
    }

    [GpuTheory]
    [InlineData(false)]
    [InlineData(true)]
    public void Packed_sequences_some_of_them_empty(bool reverse)
    {
        var packed = new GlaCase { T = 601, K = 16, V = 16, Offsets = [0, 0, 20, 20, 90, 600, 601, 601], Reverse = reverse };
        Check(packed);
        Check(packed with { K = 8, V = 8, H = 4, KvHeads = 2, Decay = GlaCase.SomeResets });
    }

    // On a Hopper GPU clusters of 1 to 8 blocks; then a block alone.
    [GpuTheory]
    [InlineData(1)]
    [InlineData(128)]
    [InlineData(129)]
    [InlineData(257)]
    [InlineData(1000)]
    [InlineData(2048)]
    [InlineData(2049)]
    public void Clusters(int time)
    {
        var shape = new GlaCase { B = 3, T = time, H = 8, K = 8, V = 8 };
        Check(shape);
        Check(shape with { Decay = GlaCase.MixedGate, KvHeads = 2, HasInitialState = false });
    }

    [GpuTheory]
    [InlineData(13)] // clusters of three blocks
    [InlineData(26)]
    public void Many_clusters(int batch) =>
        Check(new GlaCase { B = batch, T = 600, H = 8, K = 8, V = 8, Decay = GlaCase.MixedGate });

    [GpuTheory]
    [InlineData(GlaCase.ZeroGate)]
    [InlineData(GlaCase.WeakGate)]
    [InlineData(GlaCase.FarGate)]
    [InlineData(GlaCase.FarShortGate)]
    [InlineData(GlaCase.StrongGate)]
    [InlineData(GlaCase.StrongerGate)]
    [InlineData(GlaCase.SomeResets)]
    [InlineData(GlaCase.AllResets)]
    [InlineData(GlaCase.AlternatingGate)]
    public void Decays_of_clusters(string decay)
    {
        var shape = new GlaCase { T = 600, H = 4, K = 8, V = 8, Decay = decay };
        Check(shape);
        Check(shape with { Dtype = ScalarType.Float16 });
    }

    [GpuTheory]
    [InlineData(false)]
    [InlineData(true)]
    public void Packed_sequences_of_clusters(bool reverse) => Check(new GlaCase
    {
        T = 1601,
        H = 8,
        KvHeads = 4,
        K = 8,
        V = 8,
        Offsets = [0, 0, 20, 20, 90, 600, 1601, 1601],
        Reverse = reverse,
        Decay = GlaCase.SomeResets,
    });

    [GpuFact]
    public void Many_heads() => Check(new GlaCase { B = 40, T = 300, H = 8, KvHeads = 2, K = 16, V = 16 });

    [GpuFact]
    public void Results_repeat_bit_by_bit()
    {
        foreach (var size in new[] { 8, 16 })
        {
            using var scope = NewDisposeScope();
            var shape = new GlaCase { B = 8, T = 1000, H = 16, K = size, V = size };
            var inputs = shape.Inputs();
            var first = shape.Run(LinearAttentionMode.FusedChunk, inputs);
            for (var i = 0; i < 10; i++)
                GlaCase.Same(first, shape.Run(LinearAttentionMode.FusedChunk, inputs), $"size {size}, run {i}");
        }
    }

    [GpuFact]
    public void Plans_take_a_single_pass()
    {
        using var scope = NewDisposeScope();
        var few = empty(new long[] { 1, 4096, 2, 16 }, dtype: ScalarType.BFloat16, device: CUDA);
        var plan = FlaOps.PlanGla(few);
        Assert.Equal((LinearAttentionMode.FusedChunk, FlaOps.CudaPath), (plan.Mode, plan.Path));
        Assert.Contains("16 warps", plan.Reason, StringComparison.Ordinal);
        Assert.Contains("16 warps", FlaOps.PlanGla(few, LinearAttentionMode.Chunk).Reason, StringComparison.Ordinal);
        Assert.DoesNotContain("warps", FlaOps.PlanGla(few.to(float32)).Reason, StringComparison.Ordinal);
    }

    private static void Check(GlaCase shape) => shape.Check(null, LinearAttentionMode.FusedChunk, LinearAttentionMode.Auto);
}
