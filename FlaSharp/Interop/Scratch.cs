using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Interop;

/// <summary>Uninitialised memory for results: whoever takes it writes every element before anyone reads it.</summary>
internal static class Scratch
{
    // Kept alive, as TorchSharp does not keep it alive during a native call.
    private static readonly Scalar s_nan = float.NaN.ToScalar();

    /// <summary>Whether such memory is filled with NaN, so that an element that nobody wrote is seen. For tests.</summary>
    public static bool IsPoisoned { get; set; }

    /// <param name="sizes">The shape.</param>
    /// <param name="dtype">The element type.</param>
    /// <param name="device">The CPU if null.</param>
    public static Tensor Empty(ReadOnlySpan<long> sizes, ScalarType dtype = ScalarType.Float32, Device? device = null) =>
        Poisons(dtype) ? full(sizes, s_nan, dtype, device) : empty(sizes, dtype, device);

    /// <summary>Dense, whatever the strides of <paramref name="like"/>.</summary>
    /// <param name="like">Gives the shape and the device.</param>
    /// <param name="dtype">The element type.</param>
    public static Tensor Dense(Tensor like, ScalarType dtype) =>
        Empty(like.Sizes(stackalloc long[like.Rank()]), dtype, like.device);

    /// <param name="like">Gives the shape, the dtype and the device.</param>
    public static Tensor EmptyLike(Tensor like) =>
        Poisons(like.dtype) ? full_like(like, s_nan) : empty_like(like);

    private static bool Poisons(ScalarType dtype) => IsPoisoned &&
        dtype is ScalarType.Float16 or ScalarType.BFloat16 or ScalarType.Float32 or ScalarType.Float64;
}
