using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using FlaSharp.Kernels.Cpu;
using static FlaSharp.Kernels.Cpu.PartialVector;

namespace FlaSharp.Kernels.Norm;

/// <summary>
/// An RMS norm with a gate, a = act(gate): either y = n(x) w a, or, with the gate inside, y = n(x a) w, where n divides by the
/// root mean square over groups of <see cref="GroupSize"/>. All matrices are dense [rows, size]; w is [size] or null for ones.
/// </summary>
internal readonly unsafe struct GatedRmsNormCpu
{
    public required long Rows { get; init; }

    public required long Size { get; init; }

    /// <summary>Divides <see cref="Size"/>.</summary>
    public required long GroupSize { get; init; }

    public required float Eps { get; init; }

    /// <summary>True: a = gate * sigmoid(gate). False: a = sigmoid(gate).</summary>
    public required bool IsSwish { get; init; }

    public required bool NormBeforeGate { get; init; }

    public void Forward(float* x, float* gate, float* weight, float* y)
    {
        var self = this;
        new RowBlocks(Rows, Size).ForEach((first, end) =>
        {
            for (var i = first * self.Size; i < end * self.Size; i += self.GroupSize)
            {
                var w = weight is null ? null : weight + i % self.Size;
                if (self.NormBeforeGate)
                    self.NormThenGate(x + i, gate + i, w, y + i);
                else
                    self.GateThenNorm(x + i, gate + i, w, y + i);
            }
        });
    }

    /// <summary>dx and dgate, and dw if <paramref name="dWeight"/> is not null.</summary>
    public void Backward(float* x, float* gate, float* weight, float* dy, float* dx, float* dGate, float* dWeight)
    {
        var self = this;
        var blocks = new RowBlocks(Rows, Size);
        if (dWeight is null)
            blocks.ForEach((first, end) => BackwardRows(first, end, null));
        else
            blocks.ForEachWithSum(dWeight, BackwardRows);

        void BackwardRows(long first, long end, float* sum)
        {
            for (var i = first * self.Size; i < end * self.Size; i += self.GroupSize)
            {
                var w = weight is null ? null : weight + i % self.Size;
                var dw = sum is null ? null : sum + i % self.Size;
                if (self.NormBeforeGate)
                    self.NormThenGateBackward(x + i, gate + i, w, dy + i, dx + i, dGate + i, dw);
                else
                    self.GateThenNormBackward(x + i, gate + i, w, dy + i, dx + i, dGate + i, dw);
            }
        }
    }

    private void NormThenGate(float* x, float* gate, float* weight, float* y)
    {
        var squares = Vector512<float>.Zero;
        for (long i = 0; i < GroupSize; i += Vector512<float>.Count)
        {
            var xi = Load(x + i, GroupSize - i);
            squares = Vector512.FusedMultiplyAdd(xi, xi, squares);
        }

        var r = Vector512.Create(Scale(squares));
        for (long i = 0; i < GroupSize; i += Vector512<float>.Count)
        {
            var g = Load(gate + i, GroupSize - i);
            var result = Load(x + i, GroupSize - i) * r * Activate(g, VectorMath.Sigmoid(g));
            Store(weight is null ? result : result * Load(weight + i, GroupSize - i), y + i, GroupSize - i);
        }
    }

    /// <summary>With n = x r: dx = r (dn - n mean(dn n)) where dn = dy w a; da = dy w n; dw += dy a n.</summary>
    private void NormThenGateBackward(
        float* x, float* gate, float* weight, float* dy, float* dx, float* dGate, float* dWeight)
    {
        var squares = Vector512<float>.Zero;
        var products = Vector512<float>.Zero; // of x and dn
        for (long i = 0; i < GroupSize; i += Vector512<float>.Count)
        {
            var xi = Load(x + i, GroupSize - i);
            var g = Load(gate + i, GroupSize - i);
            var sigmoid = VectorMath.Sigmoid(g);
            var dn = Load(dy + i, GroupSize - i) * Activate(g, sigmoid);
            if (weight is not null)
                dn *= Load(weight + i, GroupSize - i);
            squares = Vector512.FusedMultiplyAdd(xi, xi, squares);
            products = Vector512.FusedMultiplyAdd(xi, dn, products);
            Store(sigmoid, dGate + i, GroupSize - i); // kept for the second pass
        }

        var scale = Scale(squares);
        var r = Vector512.Create(scale);
        var mean = Vector512.Create(Vector512.Sum(products) * scale / GroupSize);
        for (long i = 0; i < GroupSize; i += Vector512<float>.Count)
        {
            var normed = Load(x + i, GroupSize - i) * r;
            var g = Load(gate + i, GroupSize - i);
            var sigmoid = Load(dGate + i, GroupSize - i);
            var a = Activate(g, sigmoid);
            var dyi = Load(dy + i, GroupSize - i);
            var dyw = weight is null ? dyi : dyi * Load(weight + i, GroupSize - i);
            Store((dyw * a - normed * mean) * r, dx + i, GroupSize - i);
            Store(dyw * normed * Slope(g, sigmoid), dGate + i, GroupSize - i);
            if (dWeight is not null)
                Store(Vector512.FusedMultiplyAdd(dyi * a, normed, Load(dWeight + i, GroupSize - i)), dWeight + i, GroupSize - i);
        }
    }

    private void GateThenNorm(float* x, float* gate, float* weight, float* y)
    {
        var squares = Vector512<float>.Zero;
        for (long i = 0; i < GroupSize; i += Vector512<float>.Count)
        {
            var g = Load(gate + i, GroupSize - i);
            var gated = Load(x + i, GroupSize - i) * Activate(g, VectorMath.Sigmoid(g));
            squares = Vector512.FusedMultiplyAdd(gated, gated, squares);
            Store(gated, y + i, GroupSize - i); // kept for the second pass
        }

        var r = Vector512.Create(Scale(squares));
        for (long i = 0; i < GroupSize; i += Vector512<float>.Count)
        {
            var result = Load(y + i, GroupSize - i) * r;
            Store(weight is null ? result : result * Load(weight + i, GroupSize - i), y + i, GroupSize - i);
        }
    }

    /// <summary>With h = x a and n = h r: dh = r (dn - n mean(dn n)) where dn = dy w; dx = dh a; da = dh x; dw += dy n.</summary>
    private void GateThenNormBackward(
        float* x, float* gate, float* weight, float* dy, float* dx, float* dGate, float* dWeight)
    {
        var squares = Vector512<float>.Zero;
        var products = Vector512<float>.Zero; // of h and dn
        for (long i = 0; i < GroupSize; i += Vector512<float>.Count)
        {
            var g = Load(gate + i, GroupSize - i);
            var sigmoid = VectorMath.Sigmoid(g);
            var h = Load(x + i, GroupSize - i) * Activate(g, sigmoid);
            var dn = Load(dy + i, GroupSize - i);
            if (weight is not null)
                dn *= Load(weight + i, GroupSize - i);
            squares = Vector512.FusedMultiplyAdd(h, h, squares);
            products = Vector512.FusedMultiplyAdd(h, dn, products);
            Store(sigmoid, dGate + i, GroupSize - i); // kept for the second pass
        }

        var scale = Scale(squares);
        var r = Vector512.Create(scale);
        var mean = Vector512.Create(Vector512.Sum(products) * scale / GroupSize);
        for (long i = 0; i < GroupSize; i += Vector512<float>.Count)
        {
            var xi = Load(x + i, GroupSize - i);
            var g = Load(gate + i, GroupSize - i);
            var sigmoid = Load(dGate + i, GroupSize - i);
            var a = Activate(g, sigmoid);
            var normed = xi * a * r;
            var dyi = Load(dy + i, GroupSize - i);
            var dn = weight is null ? dyi : dyi * Load(weight + i, GroupSize - i);
            var dh = (dn - normed * mean) * r;
            Store(dh * a, dx + i, GroupSize - i);
            Store(dh * xi * Slope(g, sigmoid), dGate + i, GroupSize - i);
            if (dWeight is not null)
                Store(Vector512.FusedMultiplyAdd(dyi, normed, Load(dWeight + i, GroupSize - i)), dWeight + i, GroupSize - i);
        }
    }

    private float Scale(Vector512<float> squares) => 1 / MathF.Sqrt(Vector512.Sum(squares) / GroupSize + Eps);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private Vector512<float> Activate(Vector512<float> gate, Vector512<float> sigmoid) => IsSwish ? gate * sigmoid : sigmoid;

    /// <summary>The derivative of the activation.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private Vector512<float> Slope(Vector512<float> gate, Vector512<float> sigmoid)
    {
        var slope = Vector512<float>.One - sigmoid;
        return IsSwish ? sigmoid * Vector512.FusedMultiplyAdd(gate, slope, Vector512<float>.One) : sigmoid * slope;
    }
}
