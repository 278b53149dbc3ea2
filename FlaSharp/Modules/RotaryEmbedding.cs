using FlaSharp.Ops;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Modules;

/// <summary>
/// Rotary position embedding with its cosines and sines kept between calls: see <see cref="FlaOps.RotaryEmbedding"/>. It has
/// neither parameters nor buffers, so nothing of it is in a state dict.
/// </summary>
public sealed class RotaryEmbedding : nn.Module<Tensor, Tensor, Tensor>
{
    private const long LongestTable = 65_536; // later positions are computed in each call

    private readonly long _rotaryDim;
    private readonly double _theta;
    private readonly bool _interleaved;
    private readonly Dictionary<(DeviceType, int), Table> _tables = [];

    /// <summary>Makes the embedding; tables are made when they are needed.</summary>
    /// <param name="rotaryDim">How many leading features of a head turn; even. Usually the head size K.</param>
    /// <param name="theta">The base of the frequencies.</param>
    /// <param name="interleaved">Whether neighbours form the pairs; otherwise the two halves do, as in Llama.</param>
    public RotaryEmbedding(long rotaryDim, double theta = 10000.0, bool interleaved = false) : base(nameof(RotaryEmbedding))
    {
        FlaOps.CheckRotaryOptions(rotaryDim, theta);
        (_rotaryDim, _theta, _interleaved) = (rotaryDim, theta, interleaved);
        RegisterComponents();
    }

    /// <summary>Turns x [B, T, H, K] by its positions, int32 or int64 [T] or [B, T]; returns the shape and dtype of x.</summary>
    public override Tensor forward(Tensor x, Tensor positions)
    {
        FlaOps.CheckRotaryInput(x, positions);
        CheckHeadSize(x);
        if (FlaOps.HasRotaryKernel(x, _rotaryDim))
            return new RotaryCudaFunction(_theta, _rotaryDim, _interleaved).Run(x, positions)[0]!;
        using var scope = NewDisposeScope();
        var (cos, sin) = At(positions);
        return FlaOps.Rotate(x, cos, sin, _interleaved).MoveToOuterDisposeScope();
    }

    /// <summary>Turns x [B, T, H, K], whose tokens are at positions offset, offset + 1, ...; needs no positions tensor.</summary>
    public Tensor forward(Tensor x, long offset = 0)
    {
        FlaOps.CheckRotaryInput(x);
        CheckHeadSize(x);
        ArgumentOutOfRangeException.ThrowIfNegative(offset);
        if (FlaOps.HasRotaryKernel(x, _rotaryDim))
            return new RotaryCudaFunction(_theta, _rotaryDim, _interleaved, offset).Run(x, null)[0]!;
        using var scope = NewDisposeScope();
        var end = offset + x.size(1);
        var (cos, sin) = end <= LongestTable
            ? Tabled(x.device, end, table => table.narrow(0, offset, x.size(1)))
            : RotaryAngles.Of(arange(offset, end, device: x.device), _theta, _rotaryDim);
        return FlaOps.Rotate(x, cos, sin, _interleaved).MoveToOuterDisposeScope();
    }

    /// <inheritdoc/>
    protected override void Dispose(bool disposing)
    {
        if (disposing)
            lock (_tables)
            {
                foreach (var table in _tables.Values)
                    table.Dispose();
                _tables.Clear();
            }
        base.Dispose(disposing);
    }

    private (Tensor cos, Tensor sin) At(Tensor positions)
    {
        // On a GPU the largest position is unknown without waiting for it, and the angles cost little.
        if (positions.device_type != DeviceType.CPU
            || positions.min().ToInt64() < 0 || positions.max().ToInt64() is var last && last >= LongestTable)
            return RotaryAngles.Of(positions, _theta, _rotaryDim);
        return Tabled(positions.device, last + 1, table => table[positions]);
    }

    /// <summary>What <paramref name="choose"/> takes of the cosines and sines of positions 0 to end - 1, at least.</summary>
    private (Tensor cos, Tensor sin) Tabled(Device device, long end, Func<Tensor, Tensor> choose)
    {
        lock (_tables)
        {
            var key = (device.type, device.index);
            if (!_tables.TryGetValue(key, out var table) || table.Length < end)
            {
                table?.Dispose();
                _tables[key] = table = new Table(device, (long)System.Numerics.BitOperations.RoundUpToPowerOf2((ulong)end), _theta, _rotaryDim);
            }
            return (choose(table.Cos), choose(table.Sin));
        }
    }

    private void CheckHeadSize(Tensor x)
    {
        if (x.size(3) < _rotaryDim)
            throw new ArgumentException(
                $"x must have shape [B, T, H, K] with K >= rotaryDim = {_rotaryDim}, but has [{string.Join(", ", x.shape)}].", nameof(x));
    }

    /// <summary>The angles of positions 0 to <see cref="Length"/> - 1. Not a field of tensors: those would become buffers.</summary>
    private sealed class Table : IDisposable
    {
        public Table(Device device, long length, double theta, long rotaryDim)
        {
            using var usable = inference_mode(false); // a table made during inference serves training too
            using var positions = arange(length, device: device);
            var (cos, sin) = RotaryAngles.Of(positions, theta, rotaryDim);
            (Cos, Sin) = (cos.DetachFromDisposeScope(), sin.DetachFromDisposeScope());
        }

        public Tensor Cos { get; }

        public Tensor Sin { get; }

        public long Length => Cos.size(0);

        public void Dispose()
        {
            Cos.Dispose();
            Sin.Dispose();
        }
    }
}
