using System.Runtime.CompilerServices;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Interop;

/// <summary>Argument checks of the public operations and layers. Always on; each message says what is wrong, what was given, what to do.</summary>
internal static class Guard
{
    /// <summary>Checks rank and sizes against letters, such as "[B, T, H, K]"; a size of -1 is free.</summary>
    public static void Shape(
        Tensor tensor, string letters, ReadOnlySpan<long> expected, [CallerArgumentExpression(nameof(tensor))] string name = "")
    {
        ArgumentNullException.ThrowIfNull(tensor, name);
        var fits = tensor.Rank() == expected.Length;
        for (var i = 0; fits && i < expected.Length; i++)
            fits = expected[i] < 0 || tensor.Size(i) == expected[i];
        if (!fits)
            throw new ArgumentException(
                $"{name} must have shape {letters} = {Describe(expected)}, but has [{string.Join(", ", tensor.shape)}].", name);
    }

    /// <summary>Like <see cref="Shape"/>, for an optional tensor.</summary>
    public static void ShapeIfGiven(
        Tensor? tensor, string letters, ReadOnlySpan<long> expected, [CallerArgumentExpression(nameof(tensor))] string name = "")
    {
        if (tensor is not null)
            Shape(tensor, letters, expected, name);
    }

    /// <summary>Checks that a size is at least 1, as T of an empty sequence is not.</summary>
    public static void NotEmpty(Tensor tensor, string letters, [CallerArgumentExpression(nameof(tensor))] string name = "")
    {
        for (var i = tensor.Rank() - 1; i >= 0; i--)
            if (tensor.Size(i) == 0)
                throw new ArgumentException(
                    $"{name} of shape {letters} must not be empty, but has [{string.Join(", ", tensor.shape)}].", name);
    }

    /// <summary>Checks for float32, float16 or bfloat16.</summary>
    public static void Floating(Tensor tensor, [CallerArgumentExpression(nameof(tensor))] string name = "")
    {
        if (tensor.dtype is not (ScalarType.Float32 or ScalarType.Float16 or ScalarType.BFloat16))
            throw new ArgumentException(
                $"{name} must be float32, float16 or bfloat16, but is {tensor.dtype}. Convert it with {name}.to(torch.float32).", name);
    }

    /// <summary>Checks that the optional tensors have the dtype of the first: mixed precision is not promoted silently.</summary>
    public static void SameDtype(Tensor first, string firstName, params ReadOnlySpan<(Tensor? tensor, string name)> others)
    {
        foreach (var (tensor, name) in others)
            if (tensor is not null && tensor.dtype != first.dtype)
                throw new ArgumentException(
                    $"{name} must have the dtype of {firstName}, {first.dtype}, but is {tensor.dtype}. Convert one of them.", name);
    }

    /// <summary>Checks that the optional tensor is float32, as states and SSM parameters are.</summary>
    public static void Float32IfGiven(Tensor? tensor, [CallerArgumentExpression(nameof(tensor))] string name = "")
    {
        if (tensor is not null && tensor.dtype != ScalarType.Float32)
            throw new ArgumentException(
                $"{name} must be float32, but is {tensor.dtype}. Convert it with {name}.to(torch.float32).", name);
    }

    /// <summary>Checks that the optional tensors are float32 or of the dtype of the first, as weights beside half-precision inputs may be.</summary>
    public static void Float32OrDtypeOf(Tensor first, string firstName, params ReadOnlySpan<(Tensor? tensor, string name)> others)
    {
        foreach (var (tensor, name) in others)
            if (tensor is not null && tensor.dtype != first.dtype && tensor.dtype != ScalarType.Float32)
                throw new ArgumentException(
                    $"{name} must be float32 or have the dtype of {firstName}, {first.dtype}, but is {tensor.dtype}. Convert it.", name);
    }

    /// <summary>Checks that all tensors lie on the device of the first, and that none on the CPU holds nothing but NaN.</summary>
    public static void Operands(Tensor first, string firstName, params ReadOnlySpan<(Tensor? tensor, string name)> others)
    {
        var place = first.Place();
        foreach (var (tensor, name) in others)
            if (tensor is not null && tensor.Place() != place)
                throw new ArgumentException(
                    $"{name} must be on the device of {firstName}, {first.device}, but is on {tensor.device}. Move it with .to(device).", name);
        if (place.type != DeviceType.CPU)
            return;
        NotAllNaN(first, firstName);
        foreach (var (tensor, name) in others)
            NotAllNaN(tensor, name);
    }

    /// <summary>
    /// Checks that a tensor on the CPU holds a number. Free unless its first element is NaN; on a GPU reading that would wait for
    /// all work before it, so nothing is checked there.
    /// </summary>
    public static void NotAllNaN(Tensor? tensor, string name)
    {
        if (tensor is null || tensor.device_type != DeviceType.CPU || !StartsWithNaN(tensor))
            return;
        using var scope = NewDisposeScope();
        if (tensor.isnan().all().ToBoolean())
            throw new ArgumentException(
                $"{name} holds nothing but NaN, in [{string.Join(", ", tensor.shape)}]. Look for what made it: diverged weights, 0 / 0, inf - inf.",
                name);
    }

    private static unsafe bool StartsWithNaN(Tensor tensor) => tensor.numel() > 0 && tensor.dtype switch
    {
        ScalarType.Float32 => float.IsNaN(*(float*)TensorPointer.Of(tensor)),
        ScalarType.Float16 => Half.IsNaN(*(Half*)TensorPointer.Of(tensor)),
        ScalarType.BFloat16 => (*(ushort*)TensorPointer.Of(tensor) & 0x7fff) > 0x7f80,
        _ => false,
    };

    /// <summary>Checks that <paramref name="total"/> is a multiple of <paramref name="part"/>, as query heads are of key heads.</summary>
    public static void Divides(long total, long part, string totalName, string partName)
    {
        if (part <= 0 || total % part != 0)
            throw new ArgumentException($"{totalName} must be a multiple of {partName}, but {totalName} = {total} and {partName} = {part}.", totalName);
    }

    /// <summary>Checks a lower bound, as of a size.</summary>
    public static void AtLeast(long value, long minimum, [CallerArgumentExpression(nameof(value))] string name = "")
    {
        if (value < minimum)
            throw new ArgumentOutOfRangeException(name, value, $"{name} must be at least {minimum}, but is {value}.");
    }

    /// <summary>Checks a named option.</summary>
    public static void OneOf(string? value, string?[] known, [CallerArgumentExpression(nameof(value))] string name = "")
    {
        if (!known.Contains(value))
            throw new ArgumentException(
                $"{name} must be one of {string.Join(", ", known.Select(option => option ?? "null"))}, but is {value ?? "null"}.", name);
    }

    private static string Describe(ReadOnlySpan<long> sizes)
    {
        var parts = new string[sizes.Length];
        for (var i = 0; i < sizes.Length; i++)
            parts[i] = sizes[i] < 0 ? "any" : sizes[i].ToString();
        return $"[{string.Join(", ", parts)}]";
    }
}
