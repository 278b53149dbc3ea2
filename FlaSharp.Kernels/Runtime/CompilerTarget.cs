namespace FlaSharp.Kernels.Runtime;

/// <summary>What NVRTC compiles for: a GPU, or PTX that the driver compiles for GPUs later than these.</summary>
/// <param name="Architecture">As in NVRTC's option: sm_90a, compute_80.</param>
/// <param name="MaxSharedBytes">Dynamic shared memory that a block can have.</param>
internal sealed record CompilerTarget(string Architecture, int MaxSharedBytes)
{
    public static readonly CompilerTarget Sm80 = new("sm_80", 163 << 10);
    public static readonly CompilerTarget Sm86 = new("sm_86", 99 << 10);
    public static readonly CompilerTarget Sm89 = new("sm_89", 99 << 10);
    public static readonly CompilerTarget Sm90a = new("sm_90a", 227 << 10);

    /// <summary>For GPUs that this version does not know. Their smallest shared memory so far is sm_86's.</summary>
    public static readonly CompilerTarget Ptx80 = new("compute_80", 99 << 10);

    /// <summary>The GPUs with code of their own.</summary>
    public static IReadOnlyList<CompilerTarget> Binary { get; } = [Sm80, Sm86, Sm89, Sm90a];

    public bool IsPtx => Architecture.StartsWith("compute_", StringComparison.Ordinal);

    /// <summary>Whether the Hopper instructions (TMA, wgmma) are there.</summary>
    public bool IsHopper => Architecture == "sm_90a";

    /// <summary>The number that NVRTC lists this target by.</summary>
    public int Number => int.Parse(Architecture[(Architecture.IndexOf('_', StringComparison.Ordinal) + 1)..].TrimEnd('a'));

    /// <summary>The target of a compute capability; null below 8.0, which lacks bfloat16 and asynchronous copies.</summary>
    public static CompilerTarget? For(int major, int minor) => (major, minor) switch
    {
        ( < 8, _) => null,
        (8, 0) => Sm80,
        (8, 6) => Sm86,
        (8, 9) => Sm89,
        (9, 0) => Sm90a,
        _ => Ptx80,
    };

    public override string ToString() => Architecture;
}
