using static TorchSharp.torch;

namespace FlaSharp.IO;

/// <summary>The dtypes that the format and TorchSharp share.</summary>
internal static class SafeTensorsDType
{
    /// <summary>In the order in which the reference writer lays tensors out, so that each is aligned to its size.</summary>
    private static readonly (string name, ScalarType type, int size)[] s_all =
    [
        ("I64", ScalarType.Int64, 8), ("F64", ScalarType.Float64, 8),
        ("F32", ScalarType.Float32, 4), ("I32", ScalarType.Int32, 4),
        ("BF16", ScalarType.BFloat16, 2), ("F16", ScalarType.Float16, 2), ("I16", ScalarType.Int16, 2),
        ("I8", ScalarType.Int8, 1), ("U8", ScalarType.Byte, 1), ("BOOL", ScalarType.Bool, 1),
    ];

    public static string Supported => string.Join(", ", s_all.Select(entry => entry.name));

    public static bool TryParse(string name, out ScalarType type)
    {
        var index = Array.FindIndex(s_all, entry => entry.name == name);
        type = index < 0 ? default : s_all[index].type;
        return index >= 0;
    }

    public static bool IsSupported(ScalarType type) => Rank(type) >= 0;

    /// <summary>The place of a dtype in the layout of a file; -1 if it has none.</summary>
    public static int Rank(ScalarType type) => Array.FindIndex(s_all, entry => entry.type == type);

    public static string NameOf(ScalarType type) => s_all[Rank(type)].name;

    public static int SizeOf(ScalarType type) => s_all[Rank(type)].size;
}
