using FlaSharp.Autograd;
using FlaSharp.Interop;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Ops.Reference;

/// <summary>
/// The selective scan in TorchSharp's operations, for any device. Over a block of steps all is computed at once but the
/// recurrence itself, which is one fused operation per step; only the states at the starts of the blocks are kept for backward.
/// </summary>
/// <remarks>
/// Works on tensors [L, S, ...], time first, L the longest sequence. Shorter ones are filled up with steps of delta = 0, which
/// change no state.
/// </remarks>
internal sealed class SelectiveScanComposed(Sequences sequences, bool deltaSoftplus, bool outputFinalState) : FlaFunction
{
    private const int InputCount = 9;
    private const int MaxBlock = 64;
    private const long MaxBlockElements = 1 << 24;

    /// <inheritdoc/>
    /// <param name="inputs">u, delta, a, b, c, d, z, deltaBias, initialState; b and c [B, T, G, N].</param>
    /// <param name="saved">The inputs and the states at the starts of the blocks.</param>
    protected override Tensor?[] Forward(Tensor?[] inputs, SavedTensors? saved)
    {
        var call = new Call(sequences, deltaSoftplus, inputs);
        var state = call.InitialState;
        var starts = new List<Tensor>();
        var outputs = new List<Tensor>();
        for (var from = 0; from < call.Length; from += call.BlockSize)
        {
            using var scope = NewDisposeScope();
            if (saved is not null)
                starts.Add(state);
            var block = new Block(call, from, state);
            var y = block.Sum();
            if (block.Z is not null)
                y = y * nn.functional.silu(block.Z);
            outputs.Add(y.MoveToOuterDisposeScope());
            state = block.LastState.clone().MoveToOuterDisposeScope();
        }
        saved?.Save([.. inputs, stack(starts)]);
        return [call.Layout.Back(cat(outputs, 0)).to(inputs[0]!.dtype), outputFinalState ? state : null];
    }

    protected override Tensor?[] Backward(SavedTensors saved, Tensor?[] gradOutputs)
    {
        var inputs = new Tensor?[InputCount];
        for (var i = 0; i < InputCount; i++)
            inputs[i] = saved[i];
        var call = new Call(sequences, deltaSoftplus, inputs);
        var gradY = gradOutputs[0] is { } given ? call.Layout.TimeFirst(given) : zeros_like(call.U);
        var gradState = gradOutputs[1]?.to(ScalarType.Float32) ?? zeros_like(call.InitialState);
        var gradA = zeros_like(call.A);
        var (gradU, gradDelta) = (Scratch.EmptyLike(call.U), Scratch.EmptyLike(call.U));
        var gradZ = call.Z is null ? null : Scratch.EmptyLike(call.U);
        var (gradB, gradC) = (Scratch.EmptyLike(call.B), Scratch.EmptyLike(call.C));
        var gradD = zeros([call.U.size(2)], ScalarType.Float32, call.U.device);

        for (var from = (call.Length - 1) / call.BlockSize * call.BlockSize; from >= 0; from -= call.BlockSize)
        {
            using var scope = NewDisposeScope();
            var block = new Block(call, from, saved[InputCount]![from / call.BlockSize]);
            var gradSum = gradY.narrow(0, from, block.Count);
            if (block.Z is { } z)
            {
                var gate = z.sigmoid();
                gradZ!.narrow(0, from, block.Count).copy_(gradSum * block.Sum() * gate * (1 + z * (1 - gate)));
                gradSum = gradSum * z * gate;
            }

            // The gradient of each state: from its output, then from the state after it.
            var gradStates = block.PerChannel(gradSum.unsqueeze(-1), block.C); // [C, S, E, N]
            gradStates[block.Count - 1].add_(gradState, HeldScalar.One);
            for (var t = block.Count - 2; t >= 0; t--)
                gradStates.select(0, t).addcmul_(block.Decay.select(0, t + 1), gradStates.select(0, t + 1), HeldScalar.One);

            gradC.narrow(0, from, block.Count).copy_(block.SumOverChannels(gradSum, block.States));
            gradB.narrow(0, from, block.Count).copy_(block.SumOverChannels(block.Delta * block.U, gradStates));
            var gradInput = block.SumOverStates(gradStates, block.B);
            gradState = (gradStates[0] * block.Decay[0]).MoveToOuterDisposeScope();
            var gradExponent = gradStates.mul_(block.Decay);
            gradExponent[0].mul_(block.StartState);
            gradExponent.narrow(0, 1, block.Count - 1).mul_(block.States.narrow(0, 0, block.Count - 1));

            gradA.add_((gradExponent * block.Delta.unsqueeze(-1)).sum([0L, 1L]), HeldScalar.One);
            gradDelta.narrow(0, from, block.Count).copy_((gradExponent * call.A).sum(dim: -1) + gradInput * block.U);
            gradD.add_((gradSum * block.U).sum([0L, 1L]), HeldScalar.One);
            var fromInput = gradInput * block.Delta;
            gradU.narrow(0, from, block.Count).copy_(call.D is null ? fromInput : fromInput + gradSum * call.D);
        }

        if (deltaSoftplus)
            gradDelta.mul_(call.RawDelta.sigmoid());
        var gradDeltaOut = call.Layout.Back(gradDelta);
        return
        [
            call.Layout.Back(gradU).to(inputs[0]!.dtype),
            gradDeltaOut.to(inputs[1]!.dtype),
            gradA,
            call.Layout.Back(gradB).to(inputs[3]!.dtype),
            call.Layout.Back(gradC).to(inputs[4]!.dtype),
            gradD,
            gradZ is null ? null : call.Layout.Back(gradZ).to(inputs[6]!.dtype),
            gradDeltaOut.sum([0L, 1L]),
            gradState,
        ];
    }

    /// <summary>The inputs in float32 and time first.</summary>
    private sealed class Call
    {
        public Call(Sequences sequences, bool deltaSoftplus, Tensor?[] inputs)
        {
            Layout = new TimeFirstLayout(sequences, inputs[0]!.device);
            U = Layout.TimeFirst(inputs[0]!);
            RawDelta = Layout.TimeFirst(inputs[1]!);
            if (inputs[7] is { } bias)
                RawDelta = RawDelta.add(bias, HeldScalar.One);
            Delta = Layout.WithoutFilling(deltaSoftplus ? nn.functional.softplus(RawDelta) : RawDelta);
            A = inputs[2]!;
            B = Layout.TimeFirst(inputs[3]!);
            C = Layout.TimeFirst(inputs[4]!);
            D = inputs[5];
            Z = inputs[6] is { } z ? Layout.TimeFirst(z) : null;
            InitialState = inputs[8]?.clone()
                ?? zeros([U.size(1), A.size(0), A.size(1)], ScalarType.Float32, U.device);
            BlockSize = (int)Math.Clamp(MaxBlockElements / InitialState.numel(), 1, MaxBlock);
        }

        public TimeFirstLayout Layout { get; }

        public int Length => (int)U.size(0);

        public int BlockSize { get; }

        public Tensor U { get; } // [L, S, E]

        public Tensor RawDelta { get; } // [L, S, E], before the softplus

        public Tensor Delta { get; } // [L, S, E]

        public Tensor A { get; } // [E, N]

        public Tensor B { get; } // [L, S, G, N]

        public Tensor C { get; } // [L, S, G, N]

        public Tensor? D { get; } // [E]

        public Tensor? Z { get; } // [L, S, E]

        public Tensor InitialState { get; } // [S, E, N]
    }

    /// <summary>Some steps of all sequences, with the state after each.</summary>
    private sealed class Block
    {
        private readonly Tensor? _d;

        public Block(Call call, int from, Tensor startState)
        {
            Count = Math.Min(call.BlockSize, call.Length - from);
            Tensor Slice(Tensor tensor) => tensor.narrow(0, from, Count);
            (U, Delta, B, C) = (Slice(call.U), Slice(call.Delta), Slice(call.B), Slice(call.C));
            Z = call.Z is null ? null : Slice(call.Z);
            _d = call.D;
            StartState = startState;
            Decay = (Delta.unsqueeze(-1) * call.A).exp_();
            States = PerChannel((Delta * U).unsqueeze(-1), B);
            for (var t = 0; t < Count; t++)
                States.select(0, t).addcmul_(Decay.select(0, t), t == 0 ? startState : States.select(0, t - 1), HeldScalar.One);
        }

        public int Count { get; }

        public Tensor U { get; }

        public Tensor Delta { get; }

        public Tensor B { get; }

        public Tensor C { get; }

        public Tensor? Z { get; }

        public Tensor StartState { get; } // [S, E, N]

        public Tensor Decay { get; } // [C, S, E, N]

        public Tensor States { get; } // [C, S, E, N]

        public Tensor LastState => States[Count - 1];

        /// <summary>h . c + d u, [C, S, E].</summary>
        public Tensor Sum()
        {
            var sum = SumOverStates(States, C);
            return _d is null ? sum : sum.add(_d * U, HeldScalar.One);
        }

        /// <summary>[C, S, E, 1] times [C, S, G, N] of each channel's group: [C, S, E, N].</summary>
        public Tensor PerChannel(Tensor channels, Tensor groups) =>
            (Grouped(channels) * groups.unsqueeze(3)).flatten(2, 3);

        /// <summary>[C, S, E, N] times [C, S, G, N], summed over N: [C, S, E].</summary>
        public Tensor SumOverStates(Tensor states, Tensor groups) =>
            Grouped(states).matmul(groups.unsqueeze(-1)).squeeze(-1).flatten(2, 3);

        /// <summary>[C, S, E] times [C, S, E, N], summed over the channels of a group: [C, S, G, N].</summary>
        public Tensor SumOverChannels(Tensor channels, Tensor states) =>
            Grouped(channels).unsqueeze(3).matmul(Grouped(states)).squeeze(3);

        private Tensor Grouped(Tensor tensor) => tensor.unflatten(2, [B.size(2), U.size(2) / B.size(2)]);
    }

    /// <summary>Turns [B, T, ...] or [1, T, ...] with packed sequences into [L, S, ...] and back.</summary>
    private sealed class TimeFirstLayout
    {
        private readonly Tensor? _tokens; // [L * S]: the token at each place, or T for filling
        private readonly Tensor? _places; // [T]: the place of each token
        private readonly long _length, _count;

        public TimeFirstLayout(Sequences sequences, Device device)
        {
            (_length, _count) = (sequences.MaxLength, sequences.Count);
            if (!sequences.IsPacked)
                return;
            var tokens = new long[_length * _count];
            var places = new long[sequences.Tokens];
            Array.Fill(tokens, sequences.Tokens);
            for (var s = 0; s < sequences.Count; s++)
                for (var t = 0; t < sequences.Length(s); t++)
                {
                    tokens[t * _count + s] = sequences.Start(s) + t;
                    places[sequences.Start(s) + t] = t * _count + s;
                }
            (_tokens, _places) = (tensor(tokens, ScalarType.Int64, device), tensor(places, ScalarType.Int64, device));
        }

        /// <summary>[L, S, ...] in float32, contiguous, with zeros as filling.</summary>
        public Tensor TimeFirst(Tensor tensor)
        {
            var values = tensor.to(ScalarType.Float32);
            if (_tokens is null)
                return values.transpose(0, 1).contiguous();
            var rows = values.squeeze(0);
            return cat([rows, zeros_like(rows.narrow(0, 0, 1))], 0).index_select(0, _tokens).unflatten(0, [_length, _count]);
        }

        /// <summary>The same tensor with zeros as filling.</summary>
        public Tensor WithoutFilling(Tensor timeFirst) => _tokens is null
            ? timeFirst
            : timeFirst.masked_fill((_tokens == _places!.size(0)).reshape(_length, _count, 1), 0);

        /// <summary>[L, S, ...] to the shape it came from.</summary>
        public Tensor Back(Tensor timeFirst) => _places is null
            ? timeFirst.transpose(0, 1).contiguous()
            : timeFirst.flatten(0, 1).index_select(0, _places).unsqueeze(0);
    }
}
