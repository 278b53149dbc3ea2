using FlaSharp.Tests.Kernels;
using FlaSharp.Tests.TestSupport;
using TorchSharp;
using Xunit;
using static FlaSharp.Tests.Gpu.Blocks.BlockTest;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Gpu.Blocks;

public sealed class TransposedStateTests
{
    private const int Tokens = 32, ValuesOfTile = 32; // as in transposed_state.cu

    [GpuTheory]
    [InlineData(16, 1, 16, 32, true)]
    [InlineData(32, 2, 29, 63, true)]
    [InlineData(64, 1, 64, 17, false)]
    public void A_state_is_loaded_scaled_added_to_stored_and_saved(int keyTile, int tiles, int keys, int values, bool given)
    {
        using var scope = NewDisposeScope();
        var valueTile = tiles * ValuesOfTile;
        var x = Codes(3, 17, keys, values) * 4;
        var (k, v) = (Codes(5, 7, Tokens, keyTile), Codes(3, 7, Tokens, valueTile));
        var (z, w) = (NaN(keys, values), zeros(valueTile / 8, keyTile / 8, 8, 8, dtype: bfloat16));
        Run(BlockKernels.TransposedState(keyTile, tiles), given ? x : null, cat([k.flatten(), v.flatten()]).to(bfloat16), z, w,
            rows: keys, cols: values);

        var state = zeros(keyTile, valueTile);
        if (given)
            state.narrow(0, 0, keys).narrow(1, 0, values).copy_(x);
        var factors = pow(2f, -(arange(keyTile) % 4).to(float32)).unsqueeze(1);
        state = (state * factors) + k.t().mm(v);
        Exact(z, state.narrow(0, 0, keys).narrow(1, 0, values), "stored");
        Exact(w, (state * factors).t().reshape(valueTile / 8, 8, keyTile / 8, 8).transpose(1, 2).to(bfloat16), "saved");
    }
}
