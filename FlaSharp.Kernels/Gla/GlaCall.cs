namespace FlaSharp.Kernels.Gla;

/// <summary>The sizes and options of one call of the GLA recurrence over tokens of several sequences.</summary>
internal sealed class GlaCall
{
    /// <summary>Steps between two saved states: backward recomputes the states of that many steps at a time.</summary>
    public const int BlockSteps = 64;

    private readonly int[] _offsets;     // [S + 1], in tokens
    private readonly int[] _checkpoints; // [S + 1], in saved states: one at the start of every block but the first

    public GlaCall(ReadOnlySpan<int> offsets)
    {
        _offsets = offsets.ToArray();
        _checkpoints = new int[_offsets.Length];
        for (var s = 0; s < SequenceCount; s++)
            _checkpoints[s + 1] = _checkpoints[s] + Math.Max(0, (Length(s) - 1) / BlockSteps);
    }

    /// <summary>H, the heads of q, of the states and of the gradients.</summary>
    public required int Heads { get; init; }

    /// <summary>Hkv, the heads of k, v and g: query head h reads head h / (H / Hkv).</summary>
    public required int KvHeads { get; init; }

    /// <summary>K.</summary>
    public required int KeySize { get; init; }

    /// <summary>V.</summary>
    public required int ValueSize { get; init; }

    public required float Scale { get; init; }

    /// <summary>Whether each sequence runs from its end to its start.</summary>
    public required bool Reverse { get; init; }

    public int SequenceCount => _offsets.Length - 1;

    /// <summary>States that a forward pass saves for each head.</summary>
    public int CheckpointCount => _checkpoints[^1];

    public int Length(int sequence) => _offsets[sequence + 1] - _offsets[sequence];

    /// <summary>The token that a sequence reads at a step.</summary>
    public int Token(int sequence, int step) => Reverse ? _offsets[sequence + 1] - 1 - step : _offsets[sequence] + step;

    /// <summary>Where the state at the start of a block, not the first, lies in [checkpoints, H, K, V], in floats.</summary>
    public long CheckpointAt(int sequence, int block, int head) =>
        ((long)(_checkpoints[sequence] + block - 1) * Heads + head) * KeySize * ValueSize;

    /// <summary>Where the state of a sequence lies in [S, H, K, V], in floats.</summary>
    public long StateAt(int sequence, int head) => ((long)sequence * Heads + head) * KeySize * ValueSize;
}
