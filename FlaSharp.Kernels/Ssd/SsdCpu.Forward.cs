using System.Runtime.Intrinsics;
using FlaSharp.Kernels.Cpu;

namespace FlaSharp.Kernels.Ssd;

internal sealed unsafe partial class SsdCpu
{
    /// <param name="y">[tokens, H, P].</param>
    /// <param name="finalState">[S, H, P, N], or null.</param>
    /// <param name="states">Working memory, <see cref="StateBufferSize"/>.</param>
    public void Forward(float* y, float* finalState, float* states)
    {
        Run((sequence, head) => PassStates(sequence, head, finalState, states), (chunk, group) => Outputs(chunk, group, y, states));
    }

    /// <summary>Runs the work per sequence and head, and then, needing its results, the work per chunk and group.</summary>
    private void Run(Action<int, int> alongSequence, Action<int, int> withinChunk)
    {
        if (SequenceCount < 2 * Environment.ProcessorCount)
        {
            CpuParallel.For(SequenceCount * Heads, piece => alongSequence(piece / Heads, piece % Heads));
            CpuParallel.For(ChunkCount * Groups, piece => withinChunk(piece / Groups, piece % Groups));
            return;
        }
        // Sequence by sequence, the states are still in the cache when they are needed.
        CpuParallel.For(SequenceCount, sequence =>
        {
            for (var head = 0; head < Heads; head++)
                alongSequence(sequence, head);
            for (var chunk = _firstChunks[sequence]; chunk < _firstChunks[sequence + 1]; chunk++)
                for (var group = 0; group < Groups; group++)
                    withinChunk(chunk, group);
        });
    }

    /// <summary>Writes the state before each chunk, as [N, padded P].</summary>
    private void PassStates(int sequence, int head, float* finalState, float* states)
    {
        var stateFloats = StateSize * PaddedHead;
        var memory = CpuScratch.Take(Decays.Floats + ChunkSize + ChunkSize * PaddedHead + stateFloats);
        var decays = new Decays(memory);
        var weights = memory + Decays.Floats;
        var weighted = weights + ChunkSize;
        var last = weighted + ChunkSize * PaddedHead;

        var (first, end) = (_firstChunks[sequence], _firstChunks[sequence + 1]);
        var stateAt = ((long)sequence * Heads + head) * HeadSize * StateSize;
        var state = first < end ? StateOf(states, first, head) : last;
        var isZero = InitialState == null;
        if (!isZero)
            PackTransposed(InitialState + stateAt, StateSize, HeadSize, StateSize, state, PaddedHead);
        else if (first == end)
            new Span<float>(state, stateFloats).Clear();

        for (var chunk = first; chunk < end; chunk++)
        {
            if (chunk + 1 == end && finalState == null)
                return;
            var (start, stop) = _chunks[chunk];
            Load(ref decays, _chunks[chunk], head);
            for (var i = 0; i < ChunkSize; i++)
                weights[i] = decays.Dt[i] * decays.ToEnd[i];
            Pack(X + (long)start * RowX + head * HeadSize, RowX, stop - start, HeadSize, weighted, weights);

            var next = chunk + 1 < end ? StateOf(states, chunk + 1, head) : last;
            if (!isZero)
                Scale(state, decays.Whole, stateFloats, next);
            var b = B + (long)start * RowB + head / HeadsPerGroup * StateSize;
            TileProduct.Run(StateSize, PaddedHead, stop - start, b, 1, RowB, weighted, PaddedHead, next, PaddedHead, !isZero);
            state = next;
            isZero = false;
        }
        if (finalState != null)
            UnpackTransposed(state, PaddedHead, StateSize, HeadSize, finalState + stateAt);
    }

    private void Outputs(int chunk, int group, float* y, float* states)
    {
        var memory = CpuScratch.Take(Decays.Floats + StateSize * ChunkSize + 2 * ChunkSize * ChunkSize + 2 * ChunkSize * PaddedHead);
        var decays = new Decays(memory);
        var transposedB = memory + Decays.Floats;
        var products = transposedB + StateSize * ChunkSize;
        var scores = products + ChunkSize * ChunkSize;
        var x = scores + ChunkSize * ChunkSize;
        var output = x + ChunkSize * PaddedHead;

        var (start, end) = _chunks[chunk];
        var length = end - start;
        var c = C + (long)start * RowC + group * StateSize;
        Products(chunk, group, transposedB, products);

        for (var head = group * HeadsPerGroup; head < (group + 1) * HeadsPerGroup; head++)
        {
            Load(ref decays, _chunks[chunk], head);
            var at = ((long)start * Heads + head) * HeadSize;
            Pack(X + (long)start * RowX + head * HeadSize, RowX, length, HeadSize, x);
            for (var i = 0; i < length; i++)
                for (var j = 0; j < GatedColumns(i); j += 16)
                    (Gate(decays, i, j) * Vector512.Load(decays.Dt + j) * Vector512.Load(products + i * ChunkSize + j))
                        .Store(scores + i * ChunkSize + j);

            var inherits = InitialState != null || !IsFirst(chunk);
            if (inherits)
            {
                var state = StateOf(states, chunk, head);
                TileProduct.Run(length, PaddedHead, StateSize, c, RowC, 1, state, PaddedHead, output, PaddedHead, accumulate: false);
                for (var i = 0; i < length; i++)
                    Scale(output + i * PaddedHead, decays.FromStart[i], PaddedHead, output + i * PaddedHead);
            }
            for (var i = 0; i < length; i += RowBlock)
            {
                var rows = Math.Min(RowBlock, length - i);
                TileProduct.Run(rows, PaddedHead, i + rows, scores + i * ChunkSize, ChunkSize, 1, x, PaddedHead,
                    output + i * PaddedHead, PaddedHead, inherits);
            }

            for (var i = 0; i < length; i++)
                for (var p = 0; p < HeadSize; p += 16)
                {
                    var value = Vector512.Load(output + i * PaddedHead + p);
                    if (D != null)
                        value = Vector512.FusedMultiplyAdd(
                            PartialVector.Load(D + head * HeadSize + p, HeadSize - p), Vector512.Load(x + i * PaddedHead + p), value);
                    PartialVector.Store(value, y + at + (long)i * Heads * HeadSize + p, HeadSize - p);
                }
        }
    }

    /// <summary>c_i b_j for j up to i (and for some more), [C, C].</summary>
    private void Products(int chunk, int group, float* transposedB, float* products)
    {
        var (start, end) = _chunks[chunk];
        var length = end - start;
        PackTransposed(B + (long)start * RowB + group * StateSize, RowB, length, StateSize, transposedB, ChunkSize);
        for (var i = 0; i < length; i += RowBlock)
            TileProduct.Run(Math.Min(RowBlock, length - i), GatedColumns(i), StateSize,
                C + (long)(start + i) * RowC + group * StateSize, RowC, 1, transposedB, ChunkSize, products + i * ChunkSize, ChunkSize,
                accumulate: false);
    }

    private const int RowBlock = 8; // rows of a triangle that are multiplied together: at most 16, or gated columns would be missed
}
