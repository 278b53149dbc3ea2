using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using System.Runtime.Intrinsics;
using FlaSharp.Kernels.Cpu;

namespace FlaSharp.Kernels.Gla;

/// <summary>
/// The gradients of q, k, g and the initial state, in vectors along K. Walking back, dS += q do^T, then dk = dS v, dg = sum over
/// V of exp(g) S' dS with S' the state before the token, and dS decays; dq = S do comes with the states, which are recomputed
/// block by block.
/// </summary>
/// <remarks>
/// dg is summed as it stands, not as a reverse cumulative sum of q dq - k dk, which cancels and knows no reset by -inf.
/// Channels of K do not touch each other: they are dealt out to idle cores without changing a bit of the result.
/// </remarks>
internal readonly unsafe struct GlaKeyScan
{
    private const int Lanes = 16;
    private const int TileRows = 16; // of V: the states of a tile through a block stay in the nearest caches
    private const int RowsAtOnce = 4;

    public required GlaCall Call { get; init; }

    /// <summary>q times the scale.</summary>
    public required HeadRows Query { get; init; }

    public required HeadRows Key { get; init; }

    public required HeadRows Value { get; init; }

    /// <summary>The logarithms of the decays.</summary>
    public required HeadRows Decay { get; init; }

    public required HeadRows OutputGradient { get; init; }

    /// <summary>[S, H, K, V], or null for zeros; as <see cref="FinalStateGradient"/>.</summary>
    public required float* InitialState { get; init; }

    public required float* FinalStateGradient { get; init; }

    /// <summary>What the forward pass saved.</summary>
    public required float* Checkpoints { get; init; }

    /// <summary>The gradient of q; its scale is that of q.</summary>
    public required HeadRows QueryGradient { get; init; }

    public required HeadRows KeyGradient { get; init; }

    public required HeadRows DecayGradient { get; init; }

    /// <summary>[S, H, K, V], or null if unwanted.</summary>
    public required float* InitialStateGradient { get; init; }

    public void Run()
    {
        var scan = this;
        var tiles = (Call.KeySize + Lanes - 1) / Lanes;
        var lines = Call.SequenceCount * Call.Heads;
        var pieces = Math.Clamp((Environment.ProcessorCount + lines - 1) / lines, 1, tiles);
        CpuParallel.ForRanges(lines * pieces, (first, end) => scan.RunRange(first, end, tiles, pieces));
    }

    private void RunRange(int first, int end, int tiles, int pieces)
    {
        const int Steps = GlaCall.BlockSteps;
        var values = (Call.ValueSize + Lanes - 1) / Lanes * Lanes;
        var widest = (tiles + pieces - 1) / pieces * Lanes;
        var (keyRows, valueRows) = (Steps * widest, Steps * values);
        var memory = CpuScratch.Take(checked(6 * keyRows + 2 * valueRows + widest * values + (Steps + 1) * TileRows * Lanes));
        var valueMemory = memory + 6L * keyRows;
        var block = new Block
        {
            Values = values,
            Query = memory,
            Key = memory + keyRows,
            Decay = memory + 2L * keyRows,
            QueryGradient = memory + 3L * keyRows,
            KeyGradient = memory + 4L * keyRows,
            DecayGradient = memory + 5L * keyRows,
            Value = valueMemory,
            OutputGradient = valueMemory + valueRows,
            StateGradient = valueMemory + 2L * valueRows,
            History = valueMemory + 2L * valueRows + (long)widest * values,
        };
        for (var item = first; item < end; item++)
        {
            var (line, piece) = (item / pieces, item % pieces);
            var firstTile = (int)((long)tiles * piece / pieces);
            block.FirstChannel = firstTile * Lanes;
            block.Tiles = (int)((long)tiles * (piece + 1) / pieces) - firstTile;
            Walk(line / Call.Heads, line % Call.Heads, block);
        }
    }

    /// <summary>All steps of one head of one sequence, from the last to the first, for some channels.</summary>
    private void Walk(int sequence, int head, in Block block)
    {
        var state = Call.StateAt(sequence, head);
        for (var tile = 0; tile < block.Tiles; tile++)
            LoadTransposed(FinalStateGradient is null ? null : FinalStateGradient + state, block.FirstChannel + tile * Lanes, 0,
                block.Values, StateGradient(block, tile));

        var length = Call.Length(sequence);
        var blocks = (length + GlaCall.BlockSteps - 1) / GlaCall.BlockSteps;
        for (var b = blocks - 1; b >= 0; b--)
        {
            var start = b * GlaCall.BlockSteps;
            var steps = Math.Min(GlaCall.BlockSteps, length - start);
            var stateAtStart = b > 0 ? Checkpoints + Call.CheckpointAt(sequence, b, head)
                : InitialState is null ? null : InitialState + state;
            ReadBlock(sequence, head, start, steps, block);
            for (var tile = 0; tile < block.Tiles; tile++)
                for (var row = 0; row < Call.ValueSize; row += TileRows)
                {
                    LoadTransposed(stateAtStart, block.FirstChannel + tile * Lanes, row, TileRows, block.History);
                    Tile(steps, tile, row, block);
                }
            WriteBlock(sequence, head, start, steps, block);
        }

        if (InitialStateGradient is not null)
            for (var tile = 0; tile < block.Tiles; tile++)
                StoreTransposed(StateGradient(block, tile), block.FirstChannel + tile * Lanes, InitialStateGradient + state);
    }

    private static float* StateGradient(in Block block, int tile) => block.StateGradient + (long)tile * block.Values * Lanes;

    private void ReadBlock(int sequence, int head, int start, int steps, in Block block)
    {
        var keys = block.Tiles * Lanes;
        for (var i = 0; i < steps; i++)
        {
            var token = Call.Token(sequence, start + i);
            Query.Read(token, head, block.FirstChannel, block.Query + i * keys, keys);
            Key.Read(token, head, block.FirstChannel, block.Key + i * keys, keys);
            Value.Read(token, head, 0, block.Value + i * block.Values, block.Values);
            OutputGradient.Read(token, head, 0, block.OutputGradient + i * block.Values, block.Values);
            var decay = block.Decay + i * keys;
            Decay.Read(token, head, block.FirstChannel, decay, keys);
            for (var k = 0; k < keys; k += Lanes)
                VectorMath.Exp(Vector512.Load(decay + k)).Store(decay + k);
        }
        var bytes = (nuint)(steps * keys) * sizeof(float);
        NativeMemory.Clear(block.QueryGradient, bytes);
        NativeMemory.Clear(block.KeyGradient, bytes);
        NativeMemory.Clear(block.DecayGradient, bytes);
    }

    private void WriteBlock(int sequence, int head, int start, int steps, in Block block)
    {
        var keys = block.Tiles * Lanes;
        for (var i = 0; i < steps; i++)
        {
            var token = Call.Token(sequence, start + i);
            QueryGradient.Write(token, head, block.FirstChannel, block.QueryGradient + i * keys, keys);
            KeyGradient.Write(token, head, block.FirstChannel, block.KeyGradient + i * keys, keys);
            DecayGradient.Write(token, head, block.FirstChannel, block.DecayGradient + i * keys, keys);
        }
    }

    /// <summary>16 channels of K by up to 16 rows of V through a block: forth for the states and dq, back for the rest.</summary>
    private void Tile(int steps, int tile, int row, in Block block)
    {
        var keys = block.Tiles * Lanes;
        var rows = Math.Min(TileRows, (Call.ValueSize - row + RowsAtOnce - 1) / RowsAtOnce * RowsAtOnce);
        var k = tile * Lanes;
        Forth(steps, rows, keys, block.Decay + k, block.Key + k, block.QueryGradient + k,
            block.Values, block.Value + row, block.OutputGradient + row, block.History);
        Back(steps, rows, keys, block.Decay + k, block.Query + k, block.KeyGradient + k, block.DecayGradient + k,
            block.Values, block.Value + row, block.OutputGradient + row, block.History, StateGradient(block, tile) + row * Lanes);
    }

    /// <summary>
    /// Adds up dq, and fills history [steps + 1, 16, 16], the states before each step and after the last, from its first.
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Forth(int steps, int rows, int keys, float* decay, float* key, float* queryGradient,
        int values, float* value, float* outputGradient, float* history)
    {
        for (var i = 0; i < steps; i++)
        {
            var a = Vector512.Load(decay);
            var k = Vector512.Load(key);
            var dq0 = Vector512.Load(queryGradient);
            var dq1 = Vector512<float>.Zero;
            var dq2 = Vector512<float>.Zero;
            var dq3 = Vector512<float>.Zero;
            for (var r = 0; r < rows; r += RowsAtOnce)
            {
                var before = history + r * Lanes;
                var after = before + TileRows * Lanes;
                var s0 = Vector512.FusedMultiplyAdd(k, Vector512.Create(value[r]), a * Vector512.Load(before));
                var s1 = Vector512.FusedMultiplyAdd(k, Vector512.Create(value[r + 1]), a * Vector512.Load(before + Lanes));
                var s2 = Vector512.FusedMultiplyAdd(k, Vector512.Create(value[r + 2]), a * Vector512.Load(before + 2 * Lanes));
                var s3 = Vector512.FusedMultiplyAdd(k, Vector512.Create(value[r + 3]), a * Vector512.Load(before + 3 * Lanes));
                s0.Store(after);
                s1.Store(after + Lanes);
                s2.Store(after + 2 * Lanes);
                s3.Store(after + 3 * Lanes);
                dq0 = Vector512.FusedMultiplyAdd(s0, Vector512.Create(outputGradient[r]), dq0);
                dq1 = Vector512.FusedMultiplyAdd(s1, Vector512.Create(outputGradient[r + 1]), dq1);
                dq2 = Vector512.FusedMultiplyAdd(s2, Vector512.Create(outputGradient[r + 2]), dq2);
                dq3 = Vector512.FusedMultiplyAdd(s3, Vector512.Create(outputGradient[r + 3]), dq3);
            }
            (dq0 + dq1 + (dq2 + dq3)).Store(queryGradient);
            decay += keys;
            key += keys;
            queryGradient += keys;
            value += values;
            outputGradient += values;
            history += TileRows * Lanes;
        }
    }

    /// <summary>Carries dS [16, 16] from after the last step to before the first; adds up dk and dg.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Back(int steps, int rows, int keys, float* decay, float* query, float* keyGradient, float* decayGradient,
        int values, float* value, float* outputGradient, float* history, float* stateGradient)
    {
        for (var i = steps - 1; i >= 0; i--)
        {
            var a = Vector512.Load(decay + i * keys);
            var q = Vector512.Load(query + i * keys);
            var v = value + i * values;
            var dout = outputGradient + i * values;
            var before = history + i * TileRows * Lanes;
            var dk0 = Vector512.Load(keyGradient + i * keys);
            var dk1 = Vector512<float>.Zero;
            var dg0 = Vector512<float>.Zero;
            var dg1 = Vector512<float>.Zero;
            for (var r = 0; r < rows; r += RowsAtOnce)
            {
                var ds = stateGradient + r * Lanes;
                var s = before + r * Lanes;
                var ds0 = Vector512.FusedMultiplyAdd(q, Vector512.Create(dout[r]), Vector512.Load(ds));
                var ds1 = Vector512.FusedMultiplyAdd(q, Vector512.Create(dout[r + 1]), Vector512.Load(ds + Lanes));
                var ds2 = Vector512.FusedMultiplyAdd(q, Vector512.Create(dout[r + 2]), Vector512.Load(ds + 2 * Lanes));
                var ds3 = Vector512.FusedMultiplyAdd(q, Vector512.Create(dout[r + 3]), Vector512.Load(ds + 3 * Lanes));
                dk0 = Vector512.FusedMultiplyAdd(ds0, Vector512.Create(v[r]), dk0);
                dk1 = Vector512.FusedMultiplyAdd(ds1, Vector512.Create(v[r + 1]), dk1);
                dk0 = Vector512.FusedMultiplyAdd(ds2, Vector512.Create(v[r + 2]), dk0);
                dk1 = Vector512.FusedMultiplyAdd(ds3, Vector512.Create(v[r + 3]), dk1);
                ds0 *= a;
                ds1 *= a;
                ds2 *= a;
                ds3 *= a;
                ds0.Store(ds);
                ds1.Store(ds + Lanes);
                ds2.Store(ds + 2 * Lanes);
                ds3.Store(ds + 3 * Lanes);
                dg0 = Vector512.FusedMultiplyAdd(ds0, Vector512.Load(s), dg0);
                dg1 = Vector512.FusedMultiplyAdd(ds1, Vector512.Load(s + Lanes), dg1);
                dg0 = Vector512.FusedMultiplyAdd(ds2, Vector512.Load(s + 2 * Lanes), dg0);
                dg1 = Vector512.FusedMultiplyAdd(ds3, Vector512.Load(s + 3 * Lanes), dg1);
            }
            (dk0 + dk1).Store(keyGradient + i * keys);
            (Vector512.Load(decayGradient + i * keys) + (dg0 + dg1)).Store(decayGradient + i * keys);
        }
    }

    /// <summary>16 channels by <paramref name="rows"/> rows of V out of [K, V], zeros in the padding.</summary>
    private void LoadTransposed(float* source, int channel, int row, int rows, float* target)
    {
        NativeMemory.Clear(target, (nuint)(rows * Lanes) * sizeof(float));
        if (source is null)
            return;
        var (channels, present) = (Math.Min(Lanes, Call.KeySize - channel), Math.Min(rows, Call.ValueSize - row));
        for (var k = 0; k < channels; k++)
        {
            var line = source + (long)(channel + k) * Call.ValueSize + row;
            for (var r = 0; r < present; r++)
                target[r * Lanes + k] = line[r];
        }
    }

    private void StoreTransposed(float* source, int channel, float* target)
    {
        var channels = Math.Min(Lanes, Call.KeySize - channel);
        for (var k = 0; k < channels; k++)
        {
            var line = target + (long)(channel + k) * Call.ValueSize;
            for (var r = 0; r < Call.ValueSize; r++)
                line[r] = source[r * Lanes + k];
        }
    }

    /// <summary>What one worker holds: rows of a block of steps, padded, and the gradient of the state of its channels.</summary>
    private struct Block
    {
        public int Values; // V in whole vectors
        public int FirstChannel;
        public int Tiles;
        public float* Query; // [BlockSteps, tiles * 16], as all up to DecayGradient
        public float* Key;
        public float* Decay;
        public float* QueryGradient;
        public float* KeyGradient;
        public float* DecayGradient;
        public float* Value; // [BlockSteps, values], as OutputGradient
        public float* OutputGradient;
        public float* StateGradient; // [tiles, values, 16]
        public float* History; // [BlockSteps + 1, 16, 16], of one tile
    }
}
