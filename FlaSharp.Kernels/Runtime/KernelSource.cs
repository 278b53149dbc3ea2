namespace FlaSharp.Kernels.Runtime;

/// <summary>A kernel's source with every header that it includes, directly or not.</summary>
/// <param name="Name">As in an #include: <c>Gla/forward.cu</c>.</param>
/// <param name="Text">The source.</param>
/// <param name="Headers">The headers by name, in alphabetical order.</param>
internal sealed record KernelSource(string Name, string Text, IReadOnlyList<KeyValuePair<string, string>> Headers);
