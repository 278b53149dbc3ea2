using FlaSharp.Interop;
using FlaSharp.Kernels.Gla;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Ops;

/// <summary>
/// Gated linear attention of heads that are wider than its kernels over chunks take, in parts of them. Each key channel has a row of
/// the state to itself, and each value channel a column: what parts of the keys give adds up, what parts of the values give lies
/// side by side.
/// </summary>
/// <param name="Keys">The most key channels of a part.</param>
/// <param name="Values">The most value channels of a part.</param>
internal readonly record struct GlaParts(int Keys, int Values)
{
    /// <summary>The output and the final state of q, k, v, g and the initial state.</summary>
    public delegate (Tensor output, Tensor? finalState) Operation(Tensor q, Tensor k, Tensor v, Tensor g, Tensor? initialState);

    /// <summary>Those of the CUDA kernels.</summary>
    /// <param name="problem">The call.</param>
    public static GlaParts Of(in GlaProblem problem) => new(
        Math.Min(problem.KeySize, GlaChunkTile.MaxSize),
        problem.Gradients ? Math.Min(problem.ValueSize, GlaChunkTile.MaxSize) : problem.ValueSize);

    /// <summary>Whether this is the whole of the call.</summary>
    public bool AreAll(in GlaProblem problem) => Keys >= problem.KeySize && Values >= problem.ValueSize;

    /// <summary>Shapes as in <see cref="FlaOps.Gla"/>.</summary>
    public (Tensor output, Tensor? finalState) Run(Tensor q, Tensor k, Tensor v, Tensor g, Tensor? initialState, Operation run)
    {
        var (keySize, valueSize) = (q.Size(3), v.Size(3));
        if (keySize <= Keys && valueSize <= Values)
            return run(q, k, v, g, initialState);

        using var scope = NewDisposeScope();
        var (outputs, states) = (new List<Tensor>(), new List<Tensor>());
        foreach (var (firstValue, values) in Cut(valueSize, Values))
        {
            Tensor? sum = null;
            var rows = new List<Tensor>();
            foreach (var (firstKey, keys) in Cut(keySize, Keys))
            {
                var (output, state) = run(q.narrow(3, firstKey, keys), k.narrow(3, firstKey, keys),
                    v.narrow(3, firstValue, values), g.narrow(3, firstKey, keys),
                    initialState?.narrow(2, firstKey, keys).narrow(3, firstValue, values));
                sum = sum is null ? output : sum.add(output, HeldScalar.One);
                if (state is not null)
                    rows.Add(state);
            }
            outputs.Add(sum!);
            if (rows.Count > 0)
                states.Add(cat(rows, 2));
        }
        return (cat(outputs, 3).MoveToOuterDisposeScope(),
            states.Count > 0 ? cat(states, 3).MoveToOuterDisposeScope() : null);
    }

    private static IEnumerable<(long first, long count)> Cut(long size, int most)
    {
        for (var first = 0L; first < size; first += most)
            yield return (first, Math.Min(most, size - first));
    }
}
