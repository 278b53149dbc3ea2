using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using System.Runtime.Intrinsics;
using FlaSharp.Kernels.Cpu;

namespace FlaSharp.Kernels.Gla;

/// <summary>
/// S = diag(decay) S + write value^T, output = read S, token by token, in vectors along V. With k written, v as value and q
/// read it is the forward pass; walked back with q written, the output's gradient as value and k read, it gives v's gradient.
/// </summary>
/// <remarks>Columns of V do not touch each other: they are dealt out to idle cores without changing the result.</remarks>
internal readonly unsafe struct GlaValueScan
{
    private const int Lanes = 16;
    private const int RowsAtOnce = 4; // as many independent sums hide the latency of the multiply-add

    public required GlaCall Call { get; init; }

    /// <summary>The logarithms of the decays.</summary>
    public required HeadRows Decay { get; init; }

    public required HeadRows Write { get; init; }

    public required HeadRows Value { get; init; }

    public required HeadRows Read { get; init; }

    public required HeadRows Output { get; init; }

    /// <summary>[S, H, K, V], or null for zeros.</summary>
    public required float* InitialState { get; init; }

    /// <summary>[S, H, K, V], or null if unwanted.</summary>
    public float* FinalState { get; init; }

    /// <summary>[checkpoints, H, K, V], or null if unwanted.</summary>
    public float* Checkpoints { get; init; }

    /// <summary>Whether to walk against the call's direction. The state then decays after a token, not before it.</summary>
    public bool Backward { get; init; }

    public void Run()
    {
        var scan = this;
        var tiles = (Call.ValueSize + Lanes - 1) / Lanes;
        var lines = Call.SequenceCount * Call.Heads;
        var pieces = Math.Clamp((Environment.ProcessorCount + lines - 1) / lines, 1, tiles);
        CpuParallel.ForRanges(lines * pieces, (first, end) => scan.RunRange(first, end, tiles, pieces));
    }

    private void RunRange(int first, int end, int tiles, int pieces)
    {
        var keys = (Call.KeySize + Lanes - 1) / Lanes * Lanes;
        var widest = (tiles + pieces - 1) / pieces * Lanes;
        var (keyRows, valueRows) = (GlaCall.BlockSteps * keys, GlaCall.BlockSteps * widest);
        var memory = CpuScratch.Take(checked(3 * keyRows + 2 * valueRows + keys * widest));
        var block = new Block
        {
            Keys = keys,
            Decay = memory,
            Write = memory + keyRows,
            Read = memory + 2L * keyRows,
            Value = memory + 3L * keyRows,
            Output = memory + 3L * keyRows + valueRows,
            State = memory + 3L * keyRows + 2L * valueRows,
        };
        for (var item = first; item < end; item++)
        {
            var (line, piece) = (item / pieces, item % pieces);
            var firstTile = (int)((long)tiles * piece / pieces);
            block.FirstColumn = firstTile * Lanes;
            block.Tiles = (int)((long)tiles * (piece + 1) / pieces) - firstTile;
            Walk(line / Call.Heads, line % Call.Heads, block);
        }
    }

    /// <summary>All steps of one head of one sequence, for some columns.</summary>
    private void Walk(int sequence, int head, in Block block)
    {
        LoadState(InitialState is null ? null : InitialState + Call.StateAt(sequence, head), block);
        var length = Call.Length(sequence);
        for (var start = 0; start < length; start += GlaCall.BlockSteps)
        {
            if (Checkpoints is not null && start > 0)
                StoreState(Checkpoints + Call.CheckpointAt(sequence, start / GlaCall.BlockSteps, head), block);
            var steps = Math.Min(GlaCall.BlockSteps, length - start);
            ReadBlock(sequence, head, start, steps, block);
            for (var tile = 0; tile < block.Tiles; tile++)
                Steps(steps, Call.KeySize, block.Keys, block.Decay, block.Write, block.Read,
                    block.Value + tile * Lanes, block.Output + tile * Lanes, block.Tiles * Lanes,
                    block.State + (long)tile * block.Keys * Lanes);
            for (var i = 0; i < steps; i++)
                Output.Write(Token(sequence, start + i), head, block.FirstColumn, block.Output + i * block.Tiles * Lanes,
                    block.Tiles * Lanes);
        }
        if (FinalState is not null)
            StoreState(FinalState + Call.StateAt(sequence, head), block);
    }

    private int Token(int sequence, int step) => Call.Token(sequence, Backward ? Call.Length(sequence) - 1 - step : step);

    private void ReadBlock(int sequence, int head, int start, int steps, in Block block)
    {
        var (keys, values) = (block.Keys, block.Tiles * Lanes);
        for (var i = 0; i < steps; i++)
        {
            var token = Token(sequence, start + i);
            Write.Read(token, head, 0, block.Write + i * keys, keys);
            Read.Read(token, head, 0, block.Read + i * keys, keys);
            Value.Read(token, head, block.FirstColumn, block.Value + i * values, values);

            var decay = block.Decay + i * keys;
            if (!Backward)
                Decay.Read(token, head, 0, decay, keys);
            else if (start + i > 0)
                Decay.Read(Token(sequence, start + i - 1), head, 0, decay, keys);
            else
                NativeMemory.Clear(decay, (nuint)keys * sizeof(float));
            for (var k = 0; k < keys; k += Lanes)
                VectorMath.Exp(Vector512.Load(decay + k)).Store(decay + k);
        }
    }

    /// <summary>One tile of 16 columns through a block of steps; its state [keys, 16] stays in the first-level cache.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Steps(int steps, int keySize, int keys, float* decay, float* write, float* read,
        float* value, float* output, int values, float* state)
    {
        for (var i = 0; i < steps; i++)
        {
            var v = Vector512.Load(value);
            var sum0 = Vector512<float>.Zero;
            var sum1 = Vector512<float>.Zero;
            var sum2 = Vector512<float>.Zero;
            var sum3 = Vector512<float>.Zero;
            for (var k = 0; k < keySize; k += RowsAtOnce)
            {
                var row = state + k * Lanes;
                var s0 = Vector512.FusedMultiplyAdd(
                    Vector512.Create(write[k]), v, Vector512.Create(decay[k]) * Vector512.Load(row));
                var s1 = Vector512.FusedMultiplyAdd(
                    Vector512.Create(write[k + 1]), v, Vector512.Create(decay[k + 1]) * Vector512.Load(row + Lanes));
                var s2 = Vector512.FusedMultiplyAdd(
                    Vector512.Create(write[k + 2]), v, Vector512.Create(decay[k + 2]) * Vector512.Load(row + 2 * Lanes));
                var s3 = Vector512.FusedMultiplyAdd(
                    Vector512.Create(write[k + 3]), v, Vector512.Create(decay[k + 3]) * Vector512.Load(row + 3 * Lanes));
                s0.Store(row);
                s1.Store(row + Lanes);
                s2.Store(row + 2 * Lanes);
                s3.Store(row + 3 * Lanes);
                sum0 = Vector512.FusedMultiplyAdd(Vector512.Create(read[k]), s0, sum0);
                sum1 = Vector512.FusedMultiplyAdd(Vector512.Create(read[k + 1]), s1, sum1);
                sum2 = Vector512.FusedMultiplyAdd(Vector512.Create(read[k + 2]), s2, sum2);
                sum3 = Vector512.FusedMultiplyAdd(Vector512.Create(read[k + 3]), s3, sum3);
            }
            (sum0 + sum1 + (sum2 + sum3)).Store(output);
            decay += keys;
            write += keys;
            read += keys;
            value += values;
            output += values;
        }
    }

    /// <summary>From [K, V] to tiles [keys, 16], zeros in the padding.</summary>
    private void LoadState(float* source, in Block block)
    {
        NativeMemory.Clear(block.State, (nuint)block.Tiles * (nuint)block.Keys * Lanes * sizeof(float));
        if (source is null)
            return;
        for (var tile = 0; tile < block.Tiles; tile++)
        {
            var column = block.FirstColumn + tile * Lanes;
            var bytes = Math.Min(Lanes, Call.ValueSize - column) * sizeof(float);
            for (var k = 0; k < Call.KeySize; k++)
                Unsafe.CopyBlockUnaligned(block.State + ((long)tile * block.Keys + k) * Lanes,
                    source + (long)k * Call.ValueSize + column, (uint)bytes);
        }
    }

    private void StoreState(float* target, in Block block)
    {
        for (var tile = 0; tile < block.Tiles; tile++)
        {
            var column = block.FirstColumn + tile * Lanes;
            var bytes = Math.Min(Lanes, Call.ValueSize - column) * sizeof(float);
            for (var k = 0; k < Call.KeySize; k++)
                Unsafe.CopyBlockUnaligned(target + (long)k * Call.ValueSize + column,
                    block.State + ((long)tile * block.Keys + k) * Lanes, (uint)bytes);
        }
    }

    /// <summary>What one worker holds: the rows of a block of steps, padded, and the state of its columns.</summary>
    private struct Block
    {
        public int Keys; // K in whole vectors
        public int FirstColumn;
        public int Tiles;
        public float* Decay; // [BlockSteps, keys], as Write and Read
        public float* Write;
        public float* Read;
        public float* Value; // [BlockSteps, tiles * 16], as Output
        public float* Output;
        public float* State; // [tiles, keys, 16]
    }
}
