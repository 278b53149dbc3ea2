using FlaSharp.Kernels.Runtime;
using FlaSharp.Modules;
using FlaSharp.Ops;
using FlaSharp.Tests.Reference;
using FlaSharp.Tests.TestSupport;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Gpu;

/// <summary>Operations whose kernels are switched off, each test in a process of its own.</summary>
public sealed class DisabledKernelsTests
{
    [GpuTheory]
    [InlineData(nameof(Gla_falls_back))]
    [InlineData(nameof(Attention_falls_back))]
    public void Are_told_once_and_torch_goes_on(string test) =>
        ChildProcess.Run(1, typeof(DisabledKernelsTests), test, (CudaRuntime.DisabledVariable, "1"));

    [GpuTheory]
    [InlineData(nameof(Gla_refuses))]
    [InlineData(nameof(Attention_refuses))]
    public void Are_needed_in_strict_mode(string test) => ChildProcess.Run(
        1, typeof(DisabledKernelsTests), test, (CudaRuntime.DisabledVariable, "1"), (CudaRuntime.StrictVariable, "1"));

    [Fact(Explicit = true)]
    public void Gla_falls_back()
    {
        var messages = new List<string>();
        CudaKernels.Message = messages.Add;
        var shape = new GlaCase { T = 40 };
        shape.Check(null, LinearAttentionMode.FusedChunk, LinearAttentionMode.FusedRecurrent, LinearAttentionMode.Auto);
        Assert.Contains(CudaRuntime.DisabledVariable, Assert.Single(messages), StringComparison.Ordinal);
        Assert.Equal(FlaOps.TorchPath, FlaOps.PlanGla(shape.Inputs()[0]!).Path);
        Assert.Single(messages);
    }

    [Fact(Explicit = true)]
    public void Attention_falls_back()
    {
        using var scope = NewDisposeScope();
        var messages = new List<string>();
        CudaKernels.Message = messages.Add;
        var x = new AttentionCase().Inputs();
        var expected = new NaiveAttention().Run(x[0]!.to(float64), x[1]!.to(float64), x[2]!.to(float64));
        Compare.Close(FlaOps.Attention(x[0]!, x[1]!, x[2]!), expected, 4e-3, "libtorch");
        Compare.Close(FlaOps.Attention(x[0]!, x[1]!, x[2]!, softcap: 1e4), expected, 4e-3, "blocks");
        Assert.Contains(CudaRuntime.DisabledVariable, Assert.Single(messages), StringComparison.Ordinal);
        Assert.Equal(FlaOps.TorchPath, FlaOps.PlanAttention(x[0]!, x[1]!, x[2]!).Path);
        FlaOps.Attention(x[0]!.to(float32), x[1]!.to(float32), x[2]!.to(float32)); // by design
        Assert.Single(messages);
    }

    [Fact(Explicit = true)]
    public void Gla_refuses()
    {
        var x = new GlaCase().Inputs();
        Assert.Contains(CudaRuntime.DisabledVariable, FlaOps.PlanGla(x[0]!).Reason, StringComparison.Ordinal);
        var thrown = Assert.Throws<NotSupportedException>(() => FlaOps.Gla(x[0]!, x[1]!, x[2]!, x[3]!));
        Assert.Contains(CudaRuntime.DisabledVariable, thrown.Message, StringComparison.Ordinal);
    }

    [Fact(Explicit = true)]
    public void Attention_refuses()
    {
        using var scope = NewDisposeScope();
        var x = new AttentionCase().Inputs();
        foreach (var backend in new[] { AttentionBackend.Auto, AttentionBackend.FlaSharp })
            Assert.Contains(CudaRuntime.DisabledVariable, Assert.Throws<NotSupportedException>(
                () => FlaOps.Attention(x[0]!, x[1]!, x[2]!, backend: backend)).Message, StringComparison.Ordinal);
        FlaOps.Attention(x[0]!, x[1]!, x[2]!, backend: AttentionBackend.Torch); // asked for
    }
}
