using FlaSharp.Autograd;
using FlaSharp.Interop;
using FlaSharp.Kernels.Attention;
using FlaSharp.Kernels.Runtime;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Ops;

/// <summary>
/// Softmax attention on a GPU, with <see cref="AttentionForwardKernels"/> and <see cref="AttentionBackwardKernels"/>. Inputs:
/// q, k, v, sinks, ALiBi slopes. Output: [B, Tq, H, V].
/// </summary>
internal sealed class AttentionCudaFunction : FlaFunction
{
    private const int Q = 0, K = 1, V = 2, Sinks = 3, AlibiSlopes = 4, InputCount = 5;
    private const int Output = InputCount, LogSumExp = 6, QueryOffsets = 7, KeyOffsets = 8; // saved beside the inputs

    private readonly AttentionSequences _sequences;
    private readonly AttentionOptions _options;
    private readonly bool _portable;
    private readonly ulong _seed;
    private Tensor? _logSumExp;

    private AttentionCudaFunction(AttentionSequences sequences, AttentionOptions options, bool portable)
    {
        (_sequences, _options, _portable) = (sequences, options, portable);
        if (options.Dropout > 0)
        {
            // TorchSharp's generator on the CPU, which is the one that manual_seed sets.
            using var seed = randint(0, long.MaxValue, 1, ScalarType.Int64);
            _seed = (ulong)seed.ToInt64();
        }
    }

    /// <summary>Shapes and options as in <see cref="FlaOps.Attention"/>, checked by the caller.</summary>
    /// <param name="q">bfloat16 or float16, with sizes that the kernels take.</param>
    /// <param name="k">In q's dtype.</param>
    /// <param name="v">In q's dtype.</param>
    /// <param name="sinks">Floating, or null.</param>
    /// <param name="alibiSlopes">float32, or null.</param>
    /// <param name="sequences">The layout of the tokens.</param>
    /// <param name="options">Of the scores.</param>
    /// <param name="portable">Whether to do without Hopper's own instructions where there are some.</param>
    /// <returns>The output, and the logarithms of the sums if the options ask for them.</returns>
    public static (Tensor output, Tensor? logSumExp) Run(Tensor q, Tensor k, Tensor v, Tensor? sinks, Tensor? alibiSlopes,
        AttentionSequences sequences, AttentionOptions options, bool portable = false)
    {
        var function = new AttentionCudaFunction(sequences, options, portable);
        var output = function.Run(q, k, v, sinks, alibiSlopes)[0]!;
        return (output, function._logSumExp);
    }

    protected override Tensor?[] Forward(Tensor?[] inputs, SavedTensors? saved)
    {
        var given = Given(inputs);
        var (q, k, v) = (given[Q]!, given[K]!, given[V]!);
        var device = q.device;
        var queryOffsets = _sequences.Queries.OffsetsOn(device);
        var keyOffsets = ReferenceEquals(_sequences.Keys, _sequences.Queries) ? queryOffsets : _sequences.Keys.OffsetsOn(device);
        var output = Scratch.Empty([q.Size(0), q.Size(1), q.Size(2), v.Size(3)], v.dtype, device);
        var logSumExp = Scratch.Empty([q.Size(0), q.Size(2), q.Size(1)], device: device);
        var problem = Problem(given, queryOffsets, keyOffsets);
        new AttentionForwardKernels { IsPortable = _portable }.Forward(
            problem, q.View(), k.View(), v.View(), output.View(), TensorPointer.Of(logSumExp));
        if (saved is not null)
            AttentionBackwardKernels.ExpectBackward(problem, q.View(), k.View(), v.View(), output.View());
        GC.KeepAlive((given, queryOffsets, keyOffsets));

        saved?.Save([.. inputs, output, logSumExp, queryOffsets, keyOffsets]);
        if (_options.ReturnsLogSumExp) // no output of the graph: it has no gradient
            _logSumExp = logSumExp.MoveToOuterDisposeScope();
        return [output];
    }

    protected override Tensor?[] Backward(SavedTensors saved, Tensor?[] gradOutputs)
    {
        var gradients = new Tensor?[InputCount];
        if (gradOutputs[0] is not { } gradOutput)
            return gradients;
        var given = Given([.. Enumerable.Range(0, InputCount).Select(i => saved[i])]);
        var (q, k, v) = (given[Q]!, given[K]!, given[V]!);
        var (output, logSumExp) = (saved[Output]!, saved[LogSumExp]!);
        var (queryOffsets, keyOffsets, device) = (saved[QueryOffsets], saved[KeyOffsets], q.device);
        var gradient = gradOutput.DenseRowsApart();

        var (dq, dk, dv) = (Scratch.Dense(q, q.dtype), Scratch.Dense(k, k.dtype), Scratch.Dense(v, v.dtype));
        var dSinks = saved.NeedsGrad[Sinks] ? Scratch.Empty([q.Size(2)], device: device) : null;
        var problem = Problem(given, queryOffsets, keyOffsets);
        var workspace = Scratch.Empty([AttentionBackwardKernels.WorkspaceBytes(problem) / sizeof(float)], device: device);
        new AttentionBackwardKernels { IsPortable = _portable }.Backward(problem, q.View(), k.View(), v.View(), output.View(),
            gradient.View(), TensorPointer.Of(logSumExp), dq.View(), dk.View(), dv.View(), TensorPointer.Of(dSinks),
            TensorPointer.Of(workspace));
        GC.KeepAlive((given, gradient, output, logSumExp));
        GC.KeepAlive((queryOffsets, keyOffsets, workspace));

        (gradients[Q], gradients[K], gradients[V]) = (dq, dk, dv);
        gradients[Sinks] = dSinks?.to(saved[Sinks]!.dtype);
        return gradients;
    }

    /// <summary>As the kernels take them.</summary>
    private static Tensor?[] Given(Tensor?[] inputs) =>
    [
        inputs[Q]!.DenseRowsApart(), inputs[K]!.DenseRowsApart(), inputs[V]!.DenseRowsApart(),
        inputs[Sinks]?.DenseFloat32(), inputs[AlibiSlopes]?.Dense(),
    ];

    private AttentionProblem Problem(Tensor?[] given, Tensor? queryOffsets, Tensor? keyOffsets)
    {
        var (q, k, v) = (given[Q]!, given[K]!, given[V]!);
        return new AttentionProblem
        {
            Device = GpuDevice.Get(Math.Max(0, q.device_index)),
            Element = q.dtype.Element()!.Value,
            Queries = Layout(_sequences.Queries, queryOffsets),
            Keys = Layout(_sequences.Keys, keyOffsets),
            QueryTime = checked((int)q.Size(1)),
            KeyTime = checked((int)k.Size(1)),
            Heads = checked((int)q.Size(2)),
            KvHeads = checked((int)k.Size(2)),
            KeySize = checked((int)q.Size(3)),
            ValueSize = checked((int)v.Size(3)),
            IsCausal = _options.Causal,
            Window = _options.Window ?? 0,
            Scale = (float)_options.Scale,
            Softcap = (float)(_options.Softcap ?? 0),
            Dropout = (float)_options.Dropout,
            Seed = _seed,
            Sinks = TensorPointer.Of(given[Sinks]),
            AlibiSlopes = TensorPointer.Of(given[AlibiSlopes]),
        };
    }

    private static SequenceLayout Layout(Sequences sequences, Tensor? offsets) =>
        new(TensorPointer.Of(offsets), sequences.Count, sequences.MaxLength, 0);
}
