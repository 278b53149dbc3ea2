namespace FlaSharp.Kernels.Runtime;

/// <summary>One kernel to compile, equal to another by its contents.</summary>
/// <param name="Source">The source's name: <c>Gla/forward.cu</c>.</param>
/// <param name="Entry">The extern "C" function.</param>
/// <param name="Defines">Compile-time constants: <c>K=128</c>.</param>
/// <param name="Threads">Threads of a block.</param>
/// <param name="SharedBytes">Dynamic shared memory of a block.</param>
internal sealed record KernelVariant(string Source, string Entry, IReadOnlyList<string> Defines, int Threads, int SharedBytes)
{
    private string? _text;
    private int _hash;

    private KernelVariant(KernelVariant original)
    {
        // Without _text and _hash: who writes "with" changes something.
        (Source, Entry, Defines) = (original.Source, original.Entry, original.Defines);
        (Threads, SharedBytes) = (original.Threads, original.SharedBytes);
    }

    // A variant is looked up at every launch, so its contents become one text, and a hash, once.
    public bool Equals(KernelVariant? other) =>
        ReferenceEquals(this, other)
        || (other is not null && GetHashCode() == other.GetHashCode() && ToString() == other.ToString());

    public override int GetHashCode() => _hash != 0 ? _hash : _hash = ToString().GetHashCode(StringComparison.Ordinal) | 1;

    public override string ToString() =>
        _text ??= $"{Source}:{Entry} [{string.Join(' ', Defines)}] {Threads} threads, {SharedBytes} bytes shared";
}
