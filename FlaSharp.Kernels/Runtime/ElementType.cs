namespace FlaSharp.Kernels.Runtime;

/// <summary>What a kernel's tensors are made of.</summary>
internal enum ElementType
{
    Float32,
    BFloat16,
    Float16,
}

internal static class ElementTypes
{
    public static IReadOnlyList<ElementType> All { get; } = [ElementType.Float32, ElementType.BFloat16, ElementType.Float16];

    /// <summary>The type's name in the kernels.</summary>
    public static string Name(this ElementType type) => type switch
    {
        ElementType.Float32 => "float",
        ElementType.BFloat16 => "bf16",
        _ => "fp16",
    };

    public static int Bytes(this ElementType type) => type == ElementType.Float32 ? 4 : 2;
}
