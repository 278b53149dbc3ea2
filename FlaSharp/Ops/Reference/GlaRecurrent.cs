using FlaSharp.Autograd;
using FlaSharp.Interop;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Ops.Reference;

/// <summary>
/// The GLA recurrence in plain TorchSharp operations, for any device: one token of every sequence at a time. Backward keeps a
/// state per block of about sqrt(T) steps and recomputes the others.
/// </summary>
/// <remarks>Heads are [..., Hkv, G, ...] with G = H / Hkv, so that k, v and g serve a group by broadcasting.</remarks>
internal sealed class GlaRecurrent : FlaFunction
{
    private readonly double _scale;
    private readonly TimeMajor _layout;
    private readonly bool _outputFinalState;
    private readonly int _blockSteps;

    private GlaRecurrent(double scale, TimeMajor layout, bool outputFinalState)
    {
        (_scale, _layout, _outputFinalState) = (scale, layout, outputFinalState);
        _blockSteps = (int)Math.Ceiling(Math.Sqrt(layout.Steps));
    }

    /// <summary>Shapes as in <see cref="FlaOps.Gla"/>, checked by the caller.</summary>
    public static (Tensor output, Tensor? finalState) Run(Tensor q, Tensor k, Tensor v, Tensor g, double scale,
        Tensor? initialState, Sequences sequences, bool reverse, bool outputFinalState)
    {
        var outputs = new GlaRecurrent(scale, new TimeMajor(sequences, reverse), outputFinalState).Run(q, k, v, g, initialState);
        return (outputs[0]!, outputs[1]);
    }

    protected override Tensor?[] Forward(Tensor?[] inputs, SavedTensors? saved)
    {
        var rows = new Rows(inputs, _layout, _scale);
        var state = rows.State(inputs[4]);
        var outputs = new Tensor[_layout.Steps];
        var checkpoints = new List<Tensor>();
        for (var t = 0; t < _layout.Steps; t++)
        {
            if (saved is not null && t > 0 && t % _blockSteps == 0)
                checkpoints.Add(state.clone());
            using var step = NewDisposeScope();
            var active = rows.Advance(state, t);
            outputs[t] = _layout.At(rows.Q, t).matmul(active).MoveToOuterDisposeScope();
        }
        saved?.Save([.. inputs, .. checkpoints]);
        return
        [
            _layout.ToTokens(cat(outputs).squeeze(-2).flatten(1, 2), inputs[0]!).to(inputs[2]!.dtype),
            _outputFinalState ? _layout.ToSequences(state).flatten(1, 2) : null,
        ];
    }

    protected override Tensor?[] Backward(SavedTensors saved, Tensor?[] gradOutputs)
    {
        Tensor?[] inputs = [saved[0], saved[1], saved[2], saved[3], saved[4]];
        var (q, k, v, g) = (saved[0]!, saved[1]!, saved[2]!, saved[3]!);
        var rows = new Rows(inputs, _layout, _scale);
        var outputGradient = rows.PerQueryHead(gradOutputs[0] ?? zeros_like(v.narrow(2, 0, 1)).expand(-1, -1, q.size(2), -1));
        var stateGradient = rows.State(gradOutputs[1]);

        var (dq, dk, dv, dg) =
            (new Tensor[_layout.Steps], new Tensor[_layout.Steps], new Tensor[_layout.Steps], new Tensor[_layout.Steps]);
        for (var block = (_layout.Steps - 1) / _blockSteps; block >= 0; block--)
        {
            using var blockScope = NewDisposeScope();
            var start = block * _blockSteps;
            var end = Math.Min(start + _blockSteps, _layout.Steps);
            var states = new Tensor[end - start + 1]; // before each step, and after the last
            states[0] = block == 0 ? rows.State(inputs[4]) : saved[inputs.Length + block - 1]!;
            for (var t = start; t < end; t++)
                rows.Advance(states[t - start + 1] = states[t - start].clone(), t);

            for (var t = end - 1; t >= start; t--)
            {
                using var step = NewDisposeScope();
                var (before, after) = (_layout.Active(states[t - start], t), _layout.Active(states[t - start + 1], t));
                var (dout, ds) = (_layout.At(outputGradient, t), _layout.Active(stateGradient, t));
                ds.addcmul_(_layout.At(rows.Q, t).mT, dout, HeldScalar.One);
                dq[t] = after.matmul(dout.mT).DetachFromDisposeScope();
                dk[t] = ds.matmul(_layout.At(rows.V, t).mT).sum(2).DetachFromDisposeScope();
                dv[t] = _layout.At(rows.K, t).mT.matmul(ds).sum(2).DetachFromDisposeScope();
                ds.mul_(_layout.At(rows.Decay, t));
                dg[t] = (before * ds).sum(-1).sum(2).DetachFromDisposeScope();
            }
        }
        return
        [
            _layout.ToTokens(Joined(dq).squeeze(-1).flatten(1, 2) * _scale, q).to(q.dtype),
            _layout.ToTokens(Joined(dk).squeeze(-1), k).to(k.dtype),
            _layout.ToTokens(Joined(dv).squeeze(-2), v).to(v.dtype),
            _layout.ToTokens(Joined(dg), g).to(g.dtype),
            _layout.ToSequences(stateGradient).flatten(1, 2),
        ];
    }

    /// <summary>All rows of what the steps gave, which is freed.</summary>
    private static Tensor Joined(Tensor[] steps)
    {
        var joined = cat(steps);
        foreach (var step in steps)
            step.Dispose();
        return joined;
    }

    /// <summary>The inputs in float32, ordered by step, with the dimensions that the products of a step need.</summary>
    private sealed class Rows
    {
        private readonly TimeMajor _layout;
        private readonly long _kvHeads;
        private readonly long[] _stateShape;

        public Rows(Tensor?[] inputs, TimeMajor layout, double scale)
        {
            var (q, k, v, g) = (inputs[0]!, inputs[1]!, inputs[2]!, inputs[3]!);
            (_layout, _kvHeads) = (layout, k.size(2));
            _stateShape = [layout.SequenceCount, _kvHeads, q.size(2) / _kvHeads, q.size(3), v.size(3)];
            Q = PerQueryHead(q) * scale;
            K = Shared(k).unsqueeze(-1);
            V = Shared(v).unsqueeze(-2);
            Decay = Shared(g).exp().unsqueeze(-1);
        }

        /// <summary>[rows, Hkv, G, 1, K], times the scale.</summary>
        public Tensor Q { get; }

        /// <summary>[rows, Hkv, 1, K, 1], as <see cref="Decay"/>.</summary>
        public Tensor K { get; }

        /// <summary>[rows, Hkv, 1, 1, V].</summary>
        public Tensor V { get; }

        public Tensor Decay { get; }

        /// <summary>[B, T, H, size] to [rows, Hkv, G, 1, size].</summary>
        public Tensor PerQueryHead(Tensor x) =>
            _layout.FromTokens(x.to(ScalarType.Float32)).unflatten(1, _kvHeads, -1).unsqueeze(-2);

        /// <summary>A fresh copy of a state [S, H, K, V], or zeros, as [S, Hkv, G, K, V] in the layout's order.</summary>
        public Tensor State(Tensor? state) => state is null
            ? zeros(_stateShape, dtype: ScalarType.Float32, device: K.device)
            : _layout.FromSequences(state).view(_stateShape);

        /// <summary>Takes the state a step on, in place, and returns the part that moved.</summary>
        public Tensor Advance(Tensor state, int t) =>
            _layout.Active(state, t).mul_(_layout.At(Decay, t)).addcmul_(_layout.At(K, t), _layout.At(V, t), HeldScalar.One);

        private Tensor Shared(Tensor x) => _layout.FromTokens(x.to(ScalarType.Float32)).unsqueeze(2);
    }
}
