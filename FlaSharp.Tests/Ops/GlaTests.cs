using CsCheck;
using FlaSharp.Kernels.Gla;
using FlaSharp.Ops;
using FlaSharp.Ops.Reference;
using FlaSharp.Tests.Reference;
using FlaSharp.Tests.TestSupport;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Ops;

public sealed class GlaTests : IDisposable
{
    private readonly DisposeScope _scope = NewDisposeScope();

    /// <summary>The ways to compute it: the modes, and the recurrence in torch operations, which runs by itself on a GPU alone.</summary>
    public enum Path
    {
        Recurrent,
        RecurrentTorch,
        Chunk,
        FusedChunk,
    }

    private enum Gates
    {
        Usual,
        Strong,
        Mixed,
    }

    public void Dispose() => _scope.Dispose();

    [Theory]
    [CombinatorialPaths]
    public void Lengths(Path path)
    {
        foreach (var time in new[] { 1, 2, 15, 16, 17, 63, 64, 65, 129 })
            Check(path, new Shape(2, time, 3, 3, 8, 16), Gates.Usual);
        Check(path, new Shape(1, 500, 1, 1, 16, 7), Gates.Usual);
        Check(path, new Shape(1, 1024, 1, 1, 8, 8), Gates.Usual, initialState: false);
        if (path != Path.RecurrentTorch)
            Check(path, new Shape(1, 2048, 1, 1, 7, 16), Gates.Mixed);
    }
}
