using System.Runtime.Intrinsics;
using FlaSharp.Kernels.Cpu;

namespace FlaSharp.Kernels.SelectiveScan;

/// <summary>
/// The selective scan of Mamba, h[t] = exp(delta[t] a) h[t-1] + delta[t] u[t] b[t], y[t] = (h[t] . c[t] + d u[t]) silu(z[t]),
/// over sequences that lie one after the other. An instance is one call.
/// </summary>
/// <remarks>
/// <para>A vector holds 16 channels, and a block's state is N such vectors: inputs load without shuffles, and y needs no sum over
/// lanes. A tile of blocks of one group is a core's piece; E / G must be a multiple of <see cref="Lanes"/>.</para>
/// <para>Nearly all time goes into the exponentials. Forward keeps the state at the start of every chunk of tokens; backward
/// computes a chunk's decays and states again, once, into memory that stays in the core's cache, and walks back over them.
/// Sums over channels (for b and c) collect per lane over a tile's blocks, sums over time (for a, d and the bias) over a fixed
/// range of sequences; the caller adds the parts of the tiles and ranges in their order.</para>
/// </remarks>
internal sealed unsafe class SelectiveScanCpu
{
    public const int Lanes = 16;
    private const int TileBlocks = 8;
    private const int MaxRanges = 16;

    public required int[] Offsets { get; init; } // [S + 1], in tokens
    public required int Channels { get; init; }
    public required int States { get; init; }
    public required int Groups { get; init; }
    public required bool Softplus { get; init; }

    public required float* U { get; init; }         // [tokens, E]
    public required float* Delta { get; init; }     // [tokens, E]
    public required float* A { get; init; }         // [E, N]
    public required float* B { get; init; }         // [tokens, G, N]
    public required float* C { get; init; }         // [tokens, G, N]
    public required float* D { get; init; }         // [E] or null
    public required float* Z { get; init; }         // [tokens, E] or null
    public required float* DeltaBias { get; init; } // [E] or null

    public float* InitialState { get; init; } // [S, E, N] or null; backward finds it in ChunkStates
    public float* Y { get; init; }            // [tokens, E]
    public float* FinalState { get; init; }   // [S, E, N] or null
    public float* ChunkStates { get; init; }  // [chunks, E / 16, N, 16]; forward: null if there is no backward

    public float* GradY { get; init; }            // [tokens, E]
    public float* GradFinalState { get; init; }   // [S, E, N] or null
    public float* GradU { get; init; }            // [tokens, E]
    public float* GradDelta { get; init; }        // [tokens, E]
    public float* GradZ { get; init; }            // [tokens, E], null if Z is
    public float* GradInitialState { get; init; } // [S, E, N] or null
    public float* GradB { get; init; }            // [tiles per group, tokens, G, N]: parts
    public float* GradC { get; init; }            // [tiles per group, tokens, G, N]: parts
    public float* GradA { get; init; }            // [ranges, E, N]: parts
    public float* GradD { get; init; }            // [ranges, E]: parts
    public float* GradDeltaBias { get; init; }    // [ranges, E]: parts

    private int Sequences => Offsets.Length - 1;

    private int Chunk => ChunkLength(States);

    private int TileCount => Groups * TilesPerGroup(Channels, Groups);

    /// <summary>The number of parts of the gradients of b and c.</summary>
    public static int TilesPerGroup(int channels, int groups) => (channels / groups / Lanes + TileBlocks - 1) / TileBlocks;

    /// <summary>The number of parts of the gradients of a, d and the bias: a range of sequences each.</summary>
    public static int Ranges(int sequences) => Math.Min(sequences, MaxRanges);

    /// <summary>How many states forward keeps.</summary>
    public static int ChunkCount(ReadOnlySpan<int> offsets, int states)
    {
        int count = 0, chunk = ChunkLength(states);
        for (var s = 0; s + 1 < offsets.Length; s++)
            count += (offsets[s + 1] - offsets[s] + chunk - 1) / chunk;
        return count;
    }

    public void Forward()
    {
        var firstChunks = FirstChunks();
        var stateSize = States * Lanes;
        CpuParallel.For(Sequences * TileCount, piece =>
        {
            var (s, tile) = (piece / TileCount, TileAt(piece % TileCount));
            var decays = CpuScratch.Take(2 * TileBlocks * stateSize);
            var state = decays + TileBlocks * stateSize;
            for (var block = 0; block < tile.Blocks; block++)
            {
                var e = tile.Channel + block * Lanes;
                LoadDecays(e, decays + block * stateSize);
                LoadState(InitialState, s, e, state + block * stateSize);
            }
            var chunkIndex = firstChunks[s];
            for (var from = Offsets[s]; from < Offsets[s + 1]; from += Chunk, chunkIndex++)
            {
                var to = Math.Min(from + Chunk, Offsets[s + 1]);
                for (var block = 0; block < tile.Blocks; block++)
                {
                    var e = tile.Channel + block * Lanes;
                    if (ChunkStates != null)
                        Copy(state + block * stateSize, ChunkStateAt(chunkIndex, e));
                    for (var t = from; t < to; t++)
                        Step(t, e, tile.Group, decays + block * stateSize, state + block * stateSize);
                }
            }
            for (var block = 0; FinalState != null && block < tile.Blocks; block++)
                StoreState(state + block * stateSize, FinalState, s, tile.Channel + block * Lanes);
        });
    }

    public void Backward()
    {
        var firstChunks = FirstChunks();
        var ranges = Ranges(Sequences);
        CpuParallel.For(ranges * TileCount, piece =>
        {
            var (range, tileIndex) = (piece / TileCount, piece % TileCount);
            var tile = TileAt(tileIndex);
            var work = new BackwardScratch(States, Chunk);
            for (var block = 0; block < tile.Blocks; block++)
                LoadDecays(tile.Channel + block * Lanes, work.Decays + block * work.StateSize);
            work.ClearSums();

            for (var s = range * Sequences / ranges; s < (range + 1) * Sequences / ranges; s++)
            {
                for (var block = 0; block < tile.Blocks; block++)
                    LoadState(GradFinalState, s, tile.Channel + block * Lanes, work.GradState + block * work.StateSize);
                var chunks = (Offsets[s + 1] - Offsets[s] + Chunk - 1) / Chunk;
                for (var chunk = chunks - 1; chunk >= 0; chunk--)
                {
                    var from = Offsets[s] + chunk * Chunk;
                    var count = Math.Min(Chunk, Offsets[s + 1] - from);
                    work.ClearLanes();
                    for (var block = 0; block < tile.Blocks; block++)
                    {
                        var e = tile.Channel + block * Lanes;
                        Replay(from, count, e, tile.Group, ChunkStateAt(firstChunks[s] + chunk, e), block, work);
                        WalkBack(from, count, e, tile.Group, block, work);
                    }
                    StoreLaneSums(from, count, tile, work);
                }
                for (var block = 0; GradInitialState != null && block < tile.Blocks; block++)
                    StoreState(work.GradState + block * work.StateSize, GradInitialState, s, tile.Channel + block * Lanes);
            }
            for (var block = 0; block < tile.Blocks; block++)
            {
                var e = tile.Channel + block * Lanes;
                StoreState(work.GradA + block * work.StateSize, GradA, range, e);
                Vector512.Load(work.GradD + block * Lanes).Store(GradD + (long)range * Channels + e);
                Vector512.Load(work.GradDeltaBias + block * Lanes).Store(GradDeltaBias + (long)range * Channels + e);
            }
        });
    }

    /// <summary>
    /// Tokens per chunk. With few states a short one keeps all that backward holds of it in the first-level cache; with many that
    /// is out of reach, and a longer one stores fewer states.
    /// </summary>
    private static int ChunkLength(int states) => states <= 32 ? 8 : 16;

    /// <summary>Blocks of 16 channels of one group; Index counts the tiles of the group.</summary>
    private readonly record struct Tile(int Group, int Index, int Channel, int Blocks);

    private Tile TileAt(int tile)
    {
        var perGroup = TilesPerGroup(Channels, Groups);
        var blocks = Channels / Groups / Lanes;
        var (group, index) = (tile / perGroup, tile % perGroup);
        // Tiles of nearly the same size: 9 blocks are 5 and 4.
        int first = index * blocks / perGroup, end = (index + 1) * blocks / perGroup;
        return new Tile(group, index, (group * blocks + first) * Lanes, end - first);
    }

    /// <summary>What a core needs for backward of one tile. [..] of N * 16 floats where nothing else is said.</summary>
    private readonly struct BackwardScratch
    {
        private readonly int _laneSize;

        public BackwardScratch(int states, int chunk)
        {
            StateSize = states * Lanes;
            _laneSize = chunk * StateSize;
            var perTile = TileBlocks * StateSize;
            var next = CpuScratch.Take(3 * perTile + 4 * _laneSize + StateSize + (2 * TileBlocks + 4 * chunk) * Lanes);
            float* Part(int floats) => (next += floats) - floats;
            Decays = Part(perTile);
            GradState = Part(perTile);
            GradA = Part(perTile);
            StepDecays = Part(_laneSize);
            StepStates = Part(_laneSize + StateSize);
            LanesB = Part(_laneSize);
            LanesC = Part(_laneSize);
            GradD = Part(TileBlocks * Lanes);
            GradDeltaBias = Part(TileBlocks * Lanes);
            U = Part(chunk * Lanes);
            Delta = Part(chunk * Lanes);
            DeltaSlope = Part(chunk * Lanes);
            GradSum = Part(chunk * Lanes);
        }

        public int StateSize { get; }

        public float* Decays { get; }        // [blocks, ..]: a log2(e)
        public float* GradState { get; }     // [blocks, ..]: the gradient of the state after the chunk
        public float* GradA { get; }         // [blocks, ..]
        public float* StepDecays { get; }    // [chunk, ..]: exp(delta[t] a)
        public float* StepStates { get; }    // [chunk + 1, ..]: the states before and after each token
        public float* LanesB { get; }        // [chunk, ..]: the gradient of b before the sum over lanes
        public float* LanesC { get; }        // [chunk, ..]
        public float* GradD { get; }         // [blocks, 16]
        public float* GradDeltaBias { get; } // [blocks, 16]
        public float* U { get; }             // [chunk, 16]
        public float* Delta { get; }         // [chunk, 16], after bias and softplus
        public float* DeltaSlope { get; }    // [chunk, 16]: the derivative of the softplus
        public float* GradSum { get; }       // [chunk, 16]: the gradient of h . c + d u

        public void ClearSums()
        {
            new Span<float>(GradA, TileBlocks * StateSize).Clear();
            new Span<float>(GradD, 2 * TileBlocks * Lanes).Clear(); // and GradDeltaBias behind it
        }

        public void ClearLanes() => new Span<float>(LanesB, 2 * _laneSize).Clear(); // and LanesC behind it
    }

    private void Step(int t, int e, int group, float* decays, float* state)
    {
        var row = (long)t * Channels + e;
        var u = Vector512.Load(U + row);
        var delta = DeltaOf(RawDelta(row, e));
        var input = delta * u;
        var n = States;
        var b = B + ((long)t * Groups + group) * n;
        var c = C + ((long)t * Groups + group) * n;
        var y = D != null ? u * Vector512.Load(D + e) : Vector512<float>.Zero;
        for (var i = 0; i < n; i++)
        {
            var decay = VectorMath.Exp2(delta * Vector512.Load(decays + i * Lanes));
            var h = Vector512.FusedMultiplyAdd(decay, Vector512.Load(state + i * Lanes), input * Vector512.Create(b[i]));
            h.Store(state + i * Lanes);
            y = Vector512.FusedMultiplyAdd(h, Vector512.Create(c[i]), y);
        }
        if (Z != null)
        {
            var z = Vector512.Load(Z + row);
            y *= z * VectorMath.Sigmoid(z);
        }
        y.Store(Y + row);
    }

    /// <summary>Computes a chunk's decays and states again, and the gradients that need no later state's.</summary>
    private void Replay(int from, int count, int e, int group, float* startState, int block, in BackwardScratch work)
    {
        var n = States;
        var decays = work.Decays + block * work.StateSize;
        var state = work.StepStates;
        var stepDecays = work.StepDecays;
        var lanesC = work.LanesC;
        Copy(startState, state);
        for (var i = 0; i < count; i++)
        {
            var row = (long)(from + i) * Channels + e;
            var u = Vector512.Load(U + row);
            var raw = RawDelta(row, e);
            var delta = DeltaOf(raw);
            var input = delta * u;
            u.Store(work.U + i * Lanes);
            delta.Store(work.Delta + i * Lanes);
            (Softplus ? VectorMath.Sigmoid(raw) : Vector512<float>.One).Store(work.DeltaSlope + i * Lanes);

            var gradSum = Vector512.Load(GradY + row);
            var gradGated = gradSum;
            if (Z != null)
            {
                var z = Vector512.Load(Z + row);
                var gate = VectorMath.Sigmoid(z);
                gradSum *= z * gate;
                gradGated *= gate * Vector512.FusedMultiplyAdd(z, Vector512<float>.One - gate, Vector512<float>.One);
            }
            gradSum.Store(work.GradSum + i * Lanes);

            var b = B + ((long)(from + i) * Groups + group) * n;
            var c = C + ((long)(from + i) * Groups + group) * n;
            var y = D != null ? u * Vector512.Load(D + e) : Vector512<float>.Zero;
            for (var j = 0; j < n; j++, state += Lanes, stepDecays += Lanes, lanesC += Lanes)
            {
                var decay = VectorMath.Exp2(delta * Vector512.Load(decays + j * Lanes));
                decay.Store(stepDecays);
                var h = Vector512.FusedMultiplyAdd(decay, Vector512.Load(state), input * Vector512.Create(b[j]));
                h.Store(state + n * Lanes);
                y = Vector512.FusedMultiplyAdd(h, Vector512.Create(c[j]), y);
                Vector512.FusedMultiplyAdd(gradSum, h, Vector512.Load(lanesC)).Store(lanesC);
            }
            if (Z != null)
                (gradGated * y).Store(GradZ + row);
        }
    }

    private void WalkBack(int from, int count, int e, int group, int block, in BackwardScratch work)
    {
        var n = States;
        var stateSize = work.StateSize;
        var decays = work.Decays + block * stateSize;
        var gradState = work.GradState + block * stateSize;
        var gradA = work.GradA + block * stateSize;
        var d = D != null ? Vector512.Load(D + e) : Vector512<float>.Zero;
        var gradD = Vector512.Load(work.GradD + block * Lanes);
        var gradBias = Vector512.Load(work.GradDeltaBias + block * Lanes);
        for (var i = count - 1; i >= 0; i--)
        {
            var b = B + ((long)(from + i) * Groups + group) * n;
            var c = C + ((long)(from + i) * Groups + group) * n;
            var before = work.StepStates + i * stateSize;
            var stepDecays = work.StepDecays + i * stateSize;
            var lanesB = work.LanesB + i * stateSize;
            var u = Vector512.Load(work.U + i * Lanes);
            var delta = Vector512.Load(work.Delta + i * Lanes);
            var gradSum = Vector512.Load(work.GradSum + i * Lanes);
            var input = delta * u;
            var gradInput = Vector512<float>.Zero;
            var gradExponent = Vector512<float>.Zero;
            for (var j = 0; j < n; j++)
            {
                var at = j * Lanes;
                var gradH = Vector512.FusedMultiplyAdd(gradSum, Vector512.Create(c[j]), Vector512.Load(gradState + at));
                Vector512.FusedMultiplyAdd(input, gradH, Vector512.Load(lanesB + at)).Store(lanesB + at);
                gradInput = Vector512.FusedMultiplyAdd(gradH, Vector512.Create(b[j]), gradInput);
                gradH *= Vector512.Load(stepDecays + at);
                gradH.Store(gradState + at);
                gradH *= Vector512.Load(before + at); // now the gradient of the exponent delta a
                gradExponent = Vector512.FusedMultiplyAdd(gradH, Vector512.Load(decays + at), gradExponent);
                Vector512.FusedMultiplyAdd(gradH, delta, Vector512.Load(gradA + at)).Store(gradA + at);
            }
            // The decays carry a factor log2(e), which is taken out here.
            var gradDelta = Vector512.FusedMultiplyAdd(gradExponent, Vector512.Create(1 / VectorMath.Log2E), gradInput * u);
            gradDelta *= Vector512.Load(work.DeltaSlope + i * Lanes);
            gradBias += gradDelta;
            gradD = Vector512.FusedMultiplyAdd(gradSum, u, gradD);
            var row = (long)(from + i) * Channels + e;
            gradDelta.Store(GradDelta + row);
            Vector512.FusedMultiplyAdd(gradInput, delta, gradSum * d).Store(GradU + row);
        }
        gradD.Store(work.GradD + block * Lanes);
        gradBias.Store(work.GradDeltaBias + block * Lanes);
    }

    private void StoreLaneSums(int from, int count, Tile tile, in BackwardScratch work)
    {
        for (var i = 0; i < count; i++)
        {
            var row = (((long)tile.Index * Offsets[^1] + from + i) * Groups + tile.Group) * States;
            for (var j = 0; j < States; j++)
            {
                GradB[row + j] = Vector512.Sum(Vector512.Load(work.LanesB + i * work.StateSize + j * Lanes));
                GradC[row + j] = Vector512.Sum(Vector512.Load(work.LanesC + i * work.StateSize + j * Lanes));
            }
        }
    }

    private Vector512<float> RawDelta(long row, int e)
    {
        var raw = Vector512.Load(Delta + row);
        return DeltaBias != null ? raw + Vector512.Load(DeltaBias + e) : raw;
    }

    private Vector512<float> DeltaOf(Vector512<float> raw) => Softplus ? VectorMath.Softplus(raw) : raw;

    /// <summary>a log2(e), [N, 16]: exp(delta a) is then a power of two.</summary>
    private void LoadDecays(int e, float* decays)
    {
        LoadState(A, 0, e, decays);
        for (var i = 0; i < States * Lanes; i += Lanes)
            (Vector512.Load(decays + i) * Vector512.Create(VectorMath.Log2E)).Store(decays + i);
    }

    /// <summary>Reads 16 channels of [S, E, N] as [N, 16]; zeros if there is nothing to read.</summary>
    private void LoadState(float* states, int s, int e, float* state)
    {
        if (states == null)
        {
            new Span<float>(state, States * Lanes).Clear();
            return;
        }
        var source = states + ((long)s * Channels + e) * States;
        for (var lane = 0; lane < Lanes; lane++)
            for (var i = 0; i < States; i++)
                state[i * Lanes + lane] = source[lane * States + i];
    }

    private void StoreState(float* state, float* states, int s, int e)
    {
        var target = states + ((long)s * Channels + e) * States;
        for (var lane = 0; lane < Lanes; lane++)
            for (var i = 0; i < States; i++)
                target[lane * States + i] = state[i * Lanes + lane];
    }

    private float* ChunkStateAt(int chunk, int e) => ChunkStates + ((long)chunk * Channels + e) * States;

    private void Copy(float* source, float* target) =>
        new Span<float>(source, States * Lanes).CopyTo(new Span<float>(target, States * Lanes));

    private int[] FirstChunks()
    {
        var first = new int[Sequences];
        for (var s = 0; s + 1 < Sequences; s++)
            first[s + 1] = first[s] + (Offsets[s + 1] - Offsets[s] + Chunk - 1) / Chunk;
        return first;
    }
}
