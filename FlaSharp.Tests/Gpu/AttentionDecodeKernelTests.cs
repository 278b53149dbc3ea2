using FlaSharp.Interop;
using FlaSharp.Kernels.Attention;
using FlaSharp.Kernels.Runtime;
using FlaSharp.Layers;
using FlaSharp.Tests.Reference;
using FlaSharp.Tests.TestSupport;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Gpu;

/// <summary>
/// The CUDA kernels of decoding steps of softmax attention against float64, with NaN in the cache's unused places and in the
/// memory for results.
/// </summary>
public sealed class AttentionDecodeKernelTests
{
    private static readonly int[] s_lengths = [1, 900, 64, 65, 5000];

    [GpuTheory]
    [InlineData(64, 64)]
    [InlineData(128, 128)]
    [InlineData(256, 256)]
    [InlineData(80, 96)]
    [InlineData(192, 128)]
    [InlineData(72, 31)]
    [InlineData(1, 1)]
    [InlineData(224, 256)]
    [InlineData(33, 250)]
    public void Sizes(int keySize, int valueSize)
    {
        var kvHeads = valueSize == 1 ? 32 : 2; // a relative error of two numbers, both of which may be near 0, says nothing
        foreach (var dtype in new[] { ScalarType.BFloat16, ScalarType.Float16 })
            foreach (var group in new[] { 1, 4, 12 })
                new Case { KeySize = keySize, ValueSize = valueSize, KvHeads = kvHeads, Group = group, Dtype = dtype }.Check(s_lengths);
    }

    [GpuFact]
    public void Queries_and_windows()
    {
        foreach (var queries in new[] { 1, 2, 7, 16 })
            foreach (var window in new int?[] { null, 1, 50, 1000, 100_000 })
                new Case { Queries = queries, Window = window }.Check([16, 900, 64, 65, 5000]);
    }

    [GpuFact]
    public void Options()
    {
        foreach (var run in new int?[] { null, 64, 100_000 })
            new Case { Queries = 3, Softcap = 3, HasSinks = true, HasSlopes = true, Run = run }.Check([3, 900, 65]);
    }

    [GpuFact]
    public void Rings()
    {
        foreach (var capacity in new[] { 128, 500 })
            foreach (var queries in new[] { 1, 8 })
                new Case { Capacity = capacity, Window = 100, Queries = queries }.Check([8, 127, 128, 129, 1000, 12_345]);
    }

    [GpuFact]
    public void Any_cut_of_the_keys_gives_the_same()
    {
        using var scope = NewDisposeScope();
        foreach (var size in new[] { 64, 128, 256 })
        {
            var shape = new Case { KeySize = size, ValueSize = size, Queries = 2 };
            var inputs = shape.Inputs(s_lengths);
            var whole = (shape with { Run = 1 << 20 }).Attend(inputs, s_lengths);
            Assert.True(whole.equal((shape with { Run = 1 << 20 }).Attend(inputs, s_lengths)).all().ToBoolean());
            foreach (var run in new int?[] { null, 64, 128, 192, 1024 })
            {
                var cut = (shape with { Run = run }).Attend(inputs, s_lengths);
                Assert.True(cut.equal((shape with { Run = run }).Attend(inputs, s_lengths)).all().ToBoolean());
                Compare.Close(cut, whole, 3e-3, $"{size} features in runs of {run}");
            }
        }
    }

    [GpuTheory]
    [InlineData(null, 10000.0, ScalarType.BFloat16)]
    [InlineData(20, 10000.0, ScalarType.Float16)]
    [InlineData(1, null, ScalarType.BFloat16)]
    public void A_layer_steps_like_one_pass(int? window, double? theta, ScalarType dtype)
    {
        using var scope = NewDisposeScope();
        using var noGrad = no_grad();
        using var layer = new SoftmaxAttention(128, 8, 2, headDim: 32, window: window, ropeTheta: theta);
        layer.to(dtype);
        using var reference = new SoftmaxAttention(128, 8, 2, headDim: 32, window: window, ropeTheta: theta);
        reference.load_state_dict(layer.state_dict());
        var x = randn(3, 300, 128).to(dtype);
        var expected = reference.forward(x.to(float32));
        layer.cuda();
        x = x.cuda();

        using var state = new LayerState();
        int[] seen = [40, 1, 100];
        var packed = cat([.. seen.Select((length, row) => x[row].narrow(0, 0, length))]).unsqueeze(0);
        layer.forward(packed, null, tensor(new long[] { 0, 40, 41, 141 }), state);
        foreach (var length in Enumerable.Repeat(1, 90).Concat([16, 2, 50, 1, 1, 7])) // 50 take another way
        {
            var tokens = stack([.. seen.Select((start, row) => x[row].narrow(0, start, length))]);
            var y = layer.forward(tokens, null, null, state);
            for (var row = 0; row < 3; row++)
            {
                Compare.Close(y[row], expected[row].narrow(0, seen[row], length), 0.02, $"row {row} after {seen[row]} tokens");
                seen[row] += length;
            }
        }
        // Rows that bring unlike numbers of tokens.
        var last = layer.forward(cat([x[0].narrow(0, seen[0], 3), x[2].narrow(0, seen[2], 1)]).unsqueeze(0), null,
            tensor(new long[] { 0, 3, 3, 4 }), state);
        Compare.Close(last[0].narrow(0, 0, 3), expected[0].narrow(0, seen[0], 3), 0.02, "packed");
        Compare.Close(last[0].narrow(0, 3, 1), expected[2].narrow(0, seen[2], 1), 0.02, "packed");
    }

    internal sealed record Case
    {
        public int KeySize { get; init; } = 64;

        public int ValueSize { get; init; } = 64;

        public int KvHeads { get; init; } = 2;

        public int Group { get; init; } = 4;

        public int Queries { get; init; } = 1;

        public int? Window { get; init; }

        public float? Softcap { get; init; }

        public bool HasSinks { get; init; }

        public bool HasSlopes { get; init; }

        public int? Run { get; init; }

        public int? Capacity { get; init; }

        public ScalarType Dtype { get; init; } = ScalarType.BFloat16;

        public void Check(int[] lengths)
        {
            using var scope = NewDisposeScope();
            var inputs = Inputs(lengths);
            var actual = Attend(inputs, lengths);
            var naive = new NaiveAttention { Window = Window, Softcap = Softcap };
            for (var row = 0; row < lengths.Length; row++)
            {
                Tensor Row(Tensor tensor) => tensor.narrow(0, row, 1).cpu().to(float64);
                var count = Math.Min(lengths[row], (Window ?? lengths[row]) + Queries - 1); // all others are out of sight
                var places = (arange(lengths[row] - count, lengths[row]) % inputs.Keys.size(1)).to(int64);
                var queries = Math.Min(Queries, lengths[row]);
                Tensor Seen(Tensor tensor) => Row(tensor).index_select(1, places);
                Tensor Asked(Tensor tensor) => Row(tensor).narrow(1, Queries - queries, queries);
                var expected = naive.Run(Asked(inputs.Q), Seen(inputs.Keys), Seen(inputs.Values),
                    inputs.Sinks?.cpu().to(float64), inputs.Slopes?.cpu().to(float64));
                Compare.Close(Asked(actual), expected, Dtype == ScalarType.BFloat16 ? 6e-3 : 1e-3,
                    $"{this}, row of {lengths[row]} keys");
            }
        }

        public CaseInputs Inputs(int[] lengths)
        {
            manual_seed(lengths.Length + KeySize);
            var (batch, heads) = (lengths.Length, KvHeads * Group);
            var capacity = Capacity ?? lengths.Max() + 5;
            var keys = full([batch, capacity, KvHeads, KeySize], double.NaN, Dtype, CUDA);
            var values = full([batch, capacity, KvHeads, ValueSize], double.NaN, Dtype, CUDA);
            for (var row = 0; row < batch; row++)
            {
                var count = Math.Min(lengths[row], capacity);
                keys[row].narrow(0, 0, count).copy_(randn(count, KvHeads, KeySize));
                values[row].narrow(0, 0, count).copy_(randn(count, KvHeads, ValueSize));
            }
            return new CaseInputs(randn(batch, Queries, heads, KeySize).to(Dtype, CUDA), keys, values,
                HasSinks ? randn(heads).to(CUDA) : null, HasSlopes ? rand(heads).to(CUDA) : null);
        }

        public Tensor Attend(CaseInputs inputs, int[] lengths)
        {
            Assert.True(CudaRuntime.IsAvailable(0, out var reason), reason);
            var onDevice = tensor(lengths, device: CUDA);
            var output = Scratch.Empty([lengths.Length, Queries, KvHeads * Group, ValueSize], Dtype, CUDA);
            Tensor? parts = null;
            new AttentionDecodeKernels(new AttentionProblem
            {
                Device = GpuDevice.Get(0),
                Element = Dtype.Element()!.Value,
                Queries = new SequenceLayout(0, lengths.Length, Queries, 0),
                Keys = new SequenceLayout(0, lengths.Length, lengths.Max(), 0),
                QueryTime = Queries,
                KeyTime = checked((int)inputs.Keys.Size(1)),
                Heads = KvHeads * Group,
                KvHeads = KvHeads,
                KeySize = KeySize,
                ValueSize = ValueSize,
                IsCausal = true,
                Window = Window ?? 0,
                Scale = (float)(1 / Math.Sqrt(KeySize)),
                Softcap = Softcap ?? 0,
                Sinks = TensorPointer.Of(inputs.Sinks),
                AlibiSlopes = TensorPointer.Of(inputs.Slopes),
            })
            {
                Capacity = (int)inputs.Keys.size(1),
                Lengths = lengths,
                LengthsOnDevice = TensorPointer.Of(onDevice),
                Run = Run,
            }.Attend(inputs.Q.View(), inputs.Keys.View(), inputs.Values.View(), output.View(),
                count => TensorPointer.Of(parts = Scratch.Empty([count], device: CUDA)));
            GC.KeepAlive((inputs, onDevice, parts));
            return output;
        }
    }

    internal sealed record CaseInputs(Tensor Q, Tensor Keys, Tensor Values, Tensor? Sinks, Tensor? Slopes);
}
