using System.Runtime.CompilerServices;
using Xunit;

namespace FlaSharp.Tests.TestSupport;

/// <summary>Like <see cref="GpuFactAttribute"/>, for a test with data.</summary>
public sealed class GpuTheoryAttribute : TheoryAttribute
{
    public GpuTheoryAttribute([CallerFilePath] string? file = null, [CallerLineNumber] int line = -1) : base(file, line) =>
        Skip = GpuFactAttribute.SkipReason;
}
