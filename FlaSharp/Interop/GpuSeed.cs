using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Interop;

/// <summary>
/// TorchSharp's <c>torch.manual_seed</c> sets the generator of the CPU only, and a GPU's starts anywhere. Weights that are drawn on a
/// GPU follow that seed all the same.
/// </summary>
internal static class GpuSeed
{
    /// <summary>Seeds the generator of a GPU by a number of the CPU's: before weights are drawn.</summary>
    /// <param name="device">Theirs; null for the default one.</param>
    public static void Follow(Device? device)
    {
        if ((device ?? get_default_device()).type != DeviceType.CUDA)
            return;
        using var seed = randint(0, long.MaxValue, 1, ScalarType.Int64);
        cuda.manual_seed_all(seed.ToInt64());
    }
}
