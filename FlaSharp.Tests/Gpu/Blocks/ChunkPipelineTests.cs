using FlaSharp.Tests.Kernels;
using FlaSharp.Tests.TestSupport;
using TorchSharp;
using Xunit;
using static FlaSharp.Tests.Gpu.Blocks.BlockTest;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Gpu.Blocks;

/// <summary>Background copies, and barriers between the warps of a block.</summary>
public sealed class ChunkPipelineTests
{
    private const int Producers = 64, Consumers = 96, Words = 4 * Producers; // as in pipeline.cu

    [GpuTheory]
    [InlineData(2)]
    [InlineData(3)]
    public void Chunks_arrive_whole_and_in_order(int stages)
    {
        using var scope = NewDisposeScope();
        foreach (var chunks in new[] { 1, 2, 3, 4, 9, 1000 })
        {
            var x = Indices(int32, chunks, Words);
            var z = zeros(chunks, Words, dtype: int32);
            Run(BlockKernels.Pipeline("pipeline", stages), x, z: z, rows: chunks);
            Exact(z, x + (arange(chunks).remainder(2).unsqueeze(1) * 1_000_000), $"{chunks} chunks");
        }
    }

    [GpuTheory]
    [InlineData(-1)]
    [InlineData(0)]
    [InlineData(Producers - 1)]
    [InlineData(Producers)]
    [InlineData(Producers + Consumers - 1)]
    public void Named_barriers_join_those_who_name_them(int flagged)
    {
        using var scope = NewDisposeScope();
        var (z, w) = (zeros(Consumers, dtype: int32), zeros(Producers + Consumers, dtype: int32));
        Run(BlockKernels.Pipeline("named_barriers", 2), z: z, w: w, rows: flagged);
        var thread = arange(Producers + Consumers);
        Exact(z, thread[Producers..] + (Producers * (Producers + 1) / 2), "what the arriving threads wrote");
        var seen = flagged < 0 ? zeros_like(thread) : (thread < Producers).eq(tensor(flagged < Producers));
        Exact(w, seen, "flags");
    }
}
