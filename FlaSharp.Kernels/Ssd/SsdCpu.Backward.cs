using System.Runtime.Intrinsics;
using FlaSharp.Kernels.Cpu;

namespace FlaSharp.Kernels.Ssd;

/// <summary>Gradients of the inputs of <see cref="SsdCpu"/>, in their shapes; all are written, none is read.</summary>
internal sealed unsafe class SsdGradients
{
    public required float* X { get; init; }
    public required float* Dt { get; init; }
    public required float* LogDecay { get; init; }
    public required float* B { get; init; }
    public required float* C { get; init; }

    /// <summary>[chunks, H, P], to be summed over the chunks; null if there is no d.</summary>
    public float* D { get; init; }

    /// <summary>Null if not wanted.</summary>
    public float* InitialState { get; init; }
}

internal sealed unsafe partial class SsdCpu
{
    /// <param name="gradY">[tokens, H, P].</param>
    /// <param name="gradFinal">[S, H, P, N], or null.</param>
    /// <param name="gradients">What to write.</param>
    /// <param name="states">Working memory, <see cref="StateBufferSize"/>.</param>
    /// <param name="gradStates">Working memory, <see cref="StateBufferSize"/>.</param>
    public void Backward(float* gradY, float* gradFinal, SsdGradients gradients, float* states, float* gradStates)
    {
        Run(
            (sequence, head) =>
            {
                RecomputeStates(sequence, head, states);
                PassGradients(sequence, head, gradY, gradFinal, gradients.InitialState, gradStates);
            },
            (chunk, group) => ChunkGradients(chunk, group, gradY, gradFinal != null, gradients, states, gradStates));
    }

    /// <summary>Writes the state before each chunk as [P, padded N], the transpose of what the forward pass needs.</summary>
    private void RecomputeStates(int sequence, int head, float* states)
    {
        var stateFloats = HeadSize * PaddedState;
        var memory = CpuScratch.Take(Decays.Floats + ChunkSize + ChunkSize * (PaddedHead + PaddedState));
        var decays = new Decays(memory);
        var weights = memory + Decays.Floats;
        var weighted = weights + ChunkSize;
        var b = weighted + ChunkSize * PaddedHead;

        var (first, end) = (_firstChunks[sequence], _firstChunks[sequence + 1]);
        if (first == end)
            return;
        var isZero = InitialState == null;
        if (!isZero)
            Pack(InitialState + ((long)sequence * Heads + head) * HeadSize * StateSize, StateSize, HeadSize, StateSize,
                StateOf(states, first, head));
        for (var chunk = first; chunk + 1 < end; chunk++)
        {
            var (start, stop) = _chunks[chunk];
            Load(ref decays, _chunks[chunk], head);
            for (var i = 0; i < ChunkSize; i++)
                weights[i] = decays.Dt[i] * decays.ToEnd[i];
            Pack(X + (long)start * RowX + head * HeadSize, RowX, stop - start, HeadSize, weighted, weights);
            Pack(B + (long)start * RowB + head / HeadsPerGroup * StateSize, RowB, stop - start, StateSize, b);

            var next = StateOf(states, chunk + 1, head);
            if (!isZero)
                Scale(StateOf(states, chunk, head), decays.Whole, stateFloats, next);
            TileProduct.Run(HeadSize, PaddedState, stop - start, weighted, 1, PaddedHead, b, PaddedState, next, PaddedState, !isZero);
            isZero = false;
        }
    }

    /// <summary>Writes the gradient of the state after each chunk, as [N, padded P].</summary>
    private void PassGradients(int sequence, int head, float* gradY, float* gradFinal, float* gradInitial, float* gradStates)
    {
        var stateFloats = StateSize * PaddedHead;
        var memory = CpuScratch.Take(Decays.Floats + ChunkSize * PaddedHead + stateFloats);
        var decays = new Decays(memory);
        var weighted = memory + Decays.Floats;
        var initial = weighted + ChunkSize * PaddedHead;

        var (first, end) = (_firstChunks[sequence], _firstChunks[sequence + 1]);
        var stateAt = ((long)sequence * Heads + head) * HeadSize * StateSize;
        var gradient = first < end ? StateOf(gradStates, end - 1, head) : initial;
        var isZero = gradFinal == null;
        if (!isZero)
            PackTransposed(gradFinal + stateAt, StateSize, HeadSize, StateSize, gradient, PaddedHead);
        else if (first == end)
            new Span<float>(gradient, stateFloats).Clear();

        for (var chunk = end - 1; chunk >= first; chunk--)
        {
            if (chunk == first && gradInitial == null)
                return;
            var (start, stop) = _chunks[chunk];
            Load(ref decays, _chunks[chunk], head);
            Pack(gradY + ((long)start * Heads + head) * HeadSize, Heads * HeadSize, stop - start, HeadSize, weighted, decays.FromStart);

            var before = chunk > first ? StateOf(gradStates, chunk - 1, head) : initial;
            if (!isZero)
                Scale(gradient, decays.Whole, stateFloats, before);
            var c = C + (long)start * RowC + head / HeadsPerGroup * StateSize;
            TileProduct.Run(StateSize, PaddedHead, stop - start, c, 1, RowC, weighted, PaddedHead, before, PaddedHead, !isZero);
            gradient = before;
            isZero = false;
        }
        if (gradInitial != null)
            UnpackTransposed(gradient, PaddedHead, StateSize, HeadSize, gradInitial + stateAt);
    }

    private void ChunkGradients(
        int chunk, int group, float* gradY, bool hasGradFinal, SsdGradients gradients, float* states, float* gradStates)
    {
        const int square = ChunkSize * ChunkSize;
        int headTile = ChunkSize * PaddedHead, stateTile = ChunkSize * PaddedState;
        var memory = CpuScratch.Take(Decays.Floats + 4 * ChunkSize + StateSize * ChunkSize + 4 * square
            + HeadSize * ChunkSize + 4 * headTile + 5 * stateTile + HeadSize * PaddedState);
        var decays = new Decays(memory);
        var gradDt = memory + Decays.Floats;
        var columnSums = gradDt + ChunkSize;            // what G_j loses through the gates of the chunk
        var rowSums = columnSums + ChunkSize;           // what G_i gains
        var toEndSums = rowSums + ChunkSize;            // what G_last gains, and G_j loses, through ToEnd
        var transposedB = toEndSums + ChunkSize;        // [N, C]
        var products = transposedB + StateSize * ChunkSize;
        var gradProducts = products + square;           // summed over the heads
        var scores = gradProducts + square;
        var gradScores = scores + square;
        var transposedX = gradScores + square;          // [P, C]
        var x = transposedX + HeadSize * ChunkSize;     // [C, padded P]
        var dy = x + headTile;
        var dx = dy + headTile;
        var tile = dx + headTile;
        var b = tile + headTile;                        // [C, padded N]
        var c = b + stateTile;
        var gradB = c + stateTile;                      // summed over the heads
        var gradC = gradB + stateTile;
        var inherited = gradC + stateTile;
        var gradState = inherited + stateTile;          // [P, padded N]

        var (start, end) = _chunks[chunk];
        var length = end - start;
        var hasStart = InitialState != null || !IsFirst(chunk);
        var hasEnd = hasGradFinal || !IsFirst(chunk + 1);

        Products(chunk, group, transposedB, products);
        Pack(B + (long)start * RowB + group * StateSize, RowB, length, StateSize, b);
        Pack(C + (long)start * RowC + group * StateSize, RowC, length, StateSize, c);
        new Span<float>(gradProducts, square).Clear();
        new Span<float>(gradB, stateTile).Clear();
        new Span<float>(gradC, stateTile).Clear();

        for (var head = group * HeadsPerGroup; head < (group + 1) * HeadsPerGroup; head++)
        {
            Load(ref decays, _chunks[chunk], head);
            var xHead = X + (long)start * RowX + head * HeadSize;
            Pack(xHead, RowX, length, HeadSize, x);
            PackTransposed(xHead, RowX, length, HeadSize, transposedX, ChunkSize);
            Pack(gradY + ((long)start * Heads + head) * HeadSize, Heads * HeadSize, length, HeadSize, dy);

            // Within the chunk: the output of token i holds scores_ij x_j.
            for (var i = 0; i < length; i += RowBlock)
                TileProduct.Run(Math.Min(RowBlock, length - i), GatedColumns(i), HeadSize, dy + i * PaddedHead, PaddedHead, 1,
                    transposedX, ChunkSize, gradScores + i * ChunkSize, ChunkSize, accumulate: false);
            GateGradients(decays, length, products, gradScores, scores, gradProducts, gradDt, rowSums, columnSums);
            for (var j = 0; j < length; j += RowBlock)
                TileProduct.Run(Math.Min(RowBlock, length - j), PaddedHead, length - j, scores + j * ChunkSize + j, 1, ChunkSize,
                    dy + j * PaddedHead, PaddedHead, dx + j * PaddedHead, PaddedHead, accumulate: false);

            // The state after the chunk holds ToEnd_j dt_j x_j b_j^T and Whole times the state before.
            var gradWhole = 0f;
            new Span<float>(toEndSums, ChunkSize).Clear();
            if (hasEnd)
            {
                var gradient = StateOf(gradStates, chunk, head);
                TileProduct.Run(length, PaddedHead, StateSize, b, PaddedState, 1, gradient, PaddedHead, tile, PaddedHead, accumulate: false);
                for (var j = 0; j < length; j++)
                {
                    var weight = decays.Dt[j] * decays.ToEnd[j];
                    var gradWeight = Dot(x + j * PaddedHead, tile + j * PaddedHead, PaddedHead);
                    gradDt[j] += decays.ToEnd[j] * gradWeight;
                    toEndSums[j] = weight * gradWeight;
                    AddScaled(tile + j * PaddedHead, weight, PaddedHead, dx + j * PaddedHead);
                    Scale(x + j * PaddedHead, weight, PaddedHead, tile + j * PaddedHead);
                }
                PackTransposed(gradient, PaddedHead, StateSize, HeadSize, gradState, PaddedState);
                TileProduct.Run(length, PaddedState, HeadSize, tile, PaddedHead, 1, gradState, PaddedState, gradB, PaddedState, accumulate: true);
                if (hasStart)
                    gradWhole = decays.Whole * Dot(StateOf(states, chunk, head), gradState, HeadSize * PaddedState);
            }

            // The output of token i holds FromStart_i S c_i.
            if (hasStart)
            {
                for (var i = 0; i < length; i++)
                    Scale(dy + i * PaddedHead, decays.FromStart[i], PaddedHead, tile + i * PaddedHead);
                TileProduct.Run(length, PaddedState, HeadSize, tile, PaddedHead, 1, StateOf(states, chunk, head), PaddedState,
                    inherited, PaddedState, accumulate: false);
                for (var i = 0; i < length; i++)
                {
                    rowSums[i] += Dot(c + i * PaddedState, inherited + i * PaddedState, PaddedState);
                    AddScaled(inherited + i * PaddedState, 1, PaddedState, gradC + i * PaddedState);
                }
            }

            // G_i sums the log-decays up to i, so a log-decay gets what all later G get. In float64, where what cancels is gone.
            double sum = gradWhole;
            for (var j = 0; j < length; j++)
                sum += toEndSums[j];
            for (var i = length - 1; i >= 0; i--)
            {
                sum += (double)rowSums[i] - columnSums[i] - toEndSums[i];
                var token = (long)(start + i) * Heads + head;
                gradients.LogDecay[token] = LogDecay[token] < LowestLogDecay ? 0 : (float)sum;
                gradients.Dt[token] = gradDt[i];
            }
            DirectGradients(chunk, head, x, dy, dx, gradients);
        }

        // c_i b_j, j up to i, for the sum of the heads.
        for (var i = 0; i < length; i += RowBlock)
        {
            var rows = Math.Min(RowBlock, length - i);
            TileProduct.Run(rows, PaddedState, i + rows, gradProducts + i * ChunkSize, ChunkSize, 1, b, PaddedState,
                gradC + i * PaddedState, PaddedState, accumulate: true);
            TileProduct.Run(rows, PaddedState, length - i, gradProducts + i * ChunkSize + i, 1, ChunkSize, c + i * PaddedState, PaddedState,
                gradB + i * PaddedState, PaddedState, accumulate: true);
        }
        var at = ((long)start * Groups + group) * StateSize;
        Unpack(gradB, length, StateSize, gradients.B + at, Groups * StateSize);
        Unpack(gradC, length, StateSize, gradients.C + at, Groups * StateSize);
    }

    /// <summary>Of scores_ij = products_ij exp(G_i - G_j) dt_j, which are written as well.</summary>
    private static void GateGradients(in Decays decays, int length, float* products, float* gradScores,
        float* scores, float* gradProducts, float* gradDt, float* rowSums, float* columnSums)
    {
        new Span<float>(gradDt, ChunkSize).Clear();
        new Span<float>(columnSums, ChunkSize).Clear();
        for (var i = 0; i < length; i++)
        {
            var row = i * ChunkSize;
            var rowSum = Vector512<float>.Zero;
            for (var j = 0; j < GatedColumns(i); j += 16)
            {
                var gate = Gate(decays, i, j);
                var gatedStep = gate * Vector512.Load(decays.Dt + j);
                var product = Vector512.Load(products + row + j);
                var gradient = Vector512.Load(gradScores + row + j);
                (product * gatedStep).Store(scores + row + j);
                (Vector512.Load(gradProducts + row + j) + gradient * gatedStep).Store(gradProducts + row + j);

                var gradStep = gradient * product * gate;
                (Vector512.Load(gradDt + j) + gradStep).Store(gradDt + j);
                // G_i and G_i cancel on the diagonal: leaving it out keeps its rounding from what is left.
                var isBefore = Vector512.LessThan(Vector512<int>.Indices + Vector512.Create(j), Vector512.Create(i)).AsSingle();
                var gradSum = Vector512.ConditionalSelect(isBefore, gradStep * Vector512.Load(decays.Dt + j), Vector512<float>.Zero);
                rowSum += gradSum;
                (Vector512.Load(columnSums + j) + gradSum).Store(columnSums + j);
            }
            rowSums[i] = Vector512.Sum(rowSum);
        }
    }

    /// <summary>Of d x, and the end of the gradient of x.</summary>
    private void DirectGradients(int chunk, int head, float* x, float* dy, float* dx, SsdGradients gradients)
    {
        var (start, end) = _chunks[chunk];
        for (var p = 0; p < HeadSize; p += 16)
        {
            var left = HeadSize - p;
            var d = D == null ? Vector512<float>.Zero : PartialVector.Load(D + head * HeadSize + p, left);
            var sum = Vector512<float>.Zero;
            for (var i = 0; i < end - start; i++)
            {
                var at = i * PaddedHead + p;
                var dyi = Vector512.Load(dy + at);
                sum = Vector512.FusedMultiplyAdd(dyi, Vector512.Load(x + at), sum);
                var dxi = D == null ? Vector512.Load(dx + at) : Vector512.FusedMultiplyAdd(d, dyi, Vector512.Load(dx + at));
                PartialVector.Store(dxi, gradients.X + ((long)(start + i) * Heads + head) * HeadSize + p, left);
            }
            if (gradients.D != null)
                PartialVector.Store(sum, gradients.D + ((long)chunk * Heads + head) * HeadSize + p, left);
        }
    }

    private static void AddScaled(float* source, float factor, int count, float* target)
    {
        for (var i = 0; i < count; i += 16)
            Vector512.FusedMultiplyAdd(Vector512.Load(source + i), Vector512.Create(factor), Vector512.Load(target + i)).Store(target + i);
    }

    private static void Unpack(float* source, int rows, int columns, float* target, long targetRow)
    {
        var padded = (columns + 15) & -16;
        for (var i = 0; i < rows; i++, source += padded, target += targetRow)
            for (var j = 0; j < columns; j += 16)
                PartialVector.Store(Vector512.Load(source + j), target + j, columns - j);
    }
}
