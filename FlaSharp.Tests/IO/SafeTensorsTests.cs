using CsCheck;
using FlaSharp.IO;
using FlaSharp.Tests.TestSupport;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests.IO;

public sealed class SafeTensorsTests
{
    public static readonly TheoryData<ScalarType> DTypes =
    [
        ScalarType.Float64, ScalarType.Float32, ScalarType.Float16, ScalarType.BFloat16, ScalarType.Int64, ScalarType.Int32,
        ScalarType.Int16, ScalarType.Int8, ScalarType.Byte, ScalarType.Bool,
    ];

    public static TheoryData<string> GoldenFiles =>
        [.. Directory.EnumerateFiles(GoldenFolder, "*.safetensors", SearchOption.AllDirectories)
            .Select(file => Path.GetRelativePath(GoldenFolder, file)).Order()];

    private static string GoldenFolder => Path.Combine(AppContext.BaseDirectory, "Golden");

    [Theory, MemberData(nameof(DTypes))]
    public void Every_dtype_survives(ScalarType dtype)
    {
        using var scope = NewDisposeScope();
        using var folder = new TemporaryFolder();
        var saved = new Dictionary<string, Tensor>
        {
            ["matrix"] = arange(-6, 6, dtype: ScalarType.Float32).reshape(3, 4).to(dtype),
            ["scalar"] = tensor(1.5f).to(dtype),
            ["empty"] = zeros([2, 0, 3], dtype),
        };
        SafeTensors.Save(folder.File("x.safetensors"), saved);
        AssertSame(saved, SafeTensors.Load(folder.File("x.safetensors")));
    }

    [Fact]
    public void Any_set_of_tensors_survives()
    {
        using var folder = new TemporaryFolder();
        var path = folder.File("x.safetensors");
        // Names and metadata may hold anything that is Unicode: quotes, controls, other planes.
        var text = Gen.OneOf(
            Gen.Char['\0', '\u07ff'].Array[0, 8].Select(characters => new string(characters)),
            Gen.Const("\U0001f600\"\\"), Gen.Const("model.layers.0.weight"));
        var tensors = Gen.Select(text, Gen.Int[0, 5].Array[0, 4], Gen.Int[0, DTypes.Count - 1], Gen.Int[0, 1000]).Array[0, 6];
        var strings = Gen.Select(text, text).Array[0, 3];
        var dtypes = DTypes.Select(row => row.Data).ToArray();
        Gen.Select(tensors, strings).Sample((tensors, strings) =>
        {
            using var scope = NewDisposeScope();
            var saved = tensors.DistinctBy(tensor => tensor.Item1)
                .ToDictionary(tensor => tensor.Item1, tensor => Filled(tensor.Item2, dtypes[tensor.Item3], tensor.Item4));
            var metadata = strings.DistinctBy(pair => pair.Item1).ToDictionary(pair => pair.Item1, pair => pair.Item2);
            SafeTensors.Save(path, saved, metadata);
            AssertSame(saved, SafeTensors.Load(path));
            Assert.Equal(metadata, SafeTensors.LoadMetadata(path));
        }, iter: 300, threads: 1);
    }

    /// <summary>The golden files were written by the reference writer: reading and writing them again changes no byte.</summary>
    [Theory, MemberData(nameof(GoldenFiles))]
    public void Files_of_the_reference_writer_come_out_byte_for_byte(string name)
    {
        using var scope = NewDisposeScope();
        using var folder = new TemporaryFolder();
        var golden = Path.Combine(GoldenFolder, name);
        var copy = folder.File("copy.safetensors");
        var tensors = SafeTensors.Load(golden);
        Assert.NotEmpty(tensors);
        SafeTensors.Save(copy, tensors, SafeTensors.LoadMetadata(golden));
        Assert.Equal(File.ReadAllBytes(golden), File.ReadAllBytes(copy));
    }

    [Fact]
    public void Tensors_are_laid_out_by_dtype_then_name_and_aligned()
    {
        using var scope = NewDisposeScope();
        using var folder = new TemporaryFolder();
        var path = folder.File("x.safetensors");
        var all = DTypes.Select(row => row.Data).SelectMany(dtype => new[] { ("b", dtype), ("a", dtype) })
            .ToDictionary(pair => $"{pair.dtype}.{pair.Item1}", pair => zeros([3], pair.dtype));
        SafeTensors.Save(path, all, new Dictionary<string, string> { ["z"] = "1", ["a"] = "2" });

        using var stream = File.OpenRead(path);
        var header = SafeTensorsHeader.Read(stream, path);
        Assert.Equal(0, stream.Position % 8);
        Assert.All(header.Tensors, tensor => Assert.Equal(0, tensor.Begin % SafeTensorsDType.SizeOf(tensor.DType)));
        Assert.Equal(
            [ScalarType.Int64, ScalarType.Float64, ScalarType.Float32, ScalarType.Int32, ScalarType.BFloat16, ScalarType.Float16,
                ScalarType.Int16, ScalarType.Int8, ScalarType.Byte, ScalarType.Bool],
            header.Tensors.Select(tensor => tensor.DType).Distinct());
        Assert.All(header.Tensors.Chunk(2), pair => Assert.EndsWith(".a", pair[0].Name));
        Assert.StartsWith("""{"__metadata__":{"a":"2","z":"1"},"Int64.a":{"dtype":"I64","shape":[3],"data_offsets":[0,24]},""",
            SafeTensorsFile.HeaderOf(File.ReadAllBytes(path)));
    }

    [Fact]
    public void Views_are_saved_as_what_they_show()
    {
        using var scope = NewDisposeScope();
        using var folder = new TemporaryFolder();
        var matrix = arange(24, dtype: ScalarType.Float32).reshape(4, 6);
        var saved = new Dictionary<string, Tensor>
        {
            ["transposed"] = matrix.t(),
            ["sliced"] = matrix[TensorIndex.Slice(1, 3), TensorIndex.Slice(2, null, 2)],
            ["expanded"] = matrix[0].expand(3, 6),
            ["offset"] = matrix[2],
            ["parameter"] = nn.Parameter(matrix.clone()),
        };
        SafeTensors.Save(folder.File("x.safetensors"), saved);
        var loaded = SafeTensors.Load(folder.File("x.safetensors"));
        AssertSame(saved, loaded);
        Assert.All(loaded.Values, tensor => Assert.True(tensor.is_contiguous() && !tensor.requires_grad));
    }

    [Fact]
    public void Tensors_of_a_gpu_are_saved_and_loaded_back_to_it()
    {
        Assert.SkipUnless(cuda.is_available(), "There is no GPU.");
        using var scope = NewDisposeScope();
        using var folder = new TemporaryFolder();
        var saved = new Dictionary<string, Tensor> { ["x"] = arange(12, device: CUDA).reshape(3, 4).t() };
        SafeTensors.Save(folder.File("x.safetensors"), saved);
        var loaded = SafeTensors.Load(folder.File("x.safetensors"), CUDA);
        Assert.Equal(DeviceType.CUDA, loaded["x"].device_type);
        AssertSame(saved, loaded);
    }

    [Fact]
    public void Loaded_tensors_belong_to_the_callers_scope()
    {
        using var folder = new TemporaryFolder();
        var path = folder.File("x.safetensors");
        using (NewDisposeScope())
            SafeTensors.Save(path, new Dictionary<string, Tensor> { ["x"] = ones(3) });
        Tensor x;
        using (NewDisposeScope())
            x = SafeTensors.Load(path)["x"];
        Assert.True(x.IsInvalid);
    }

    [Fact]
    public void Data_goes_straight_into_the_tensor()
    {
        using var scope = NewDisposeScope();
        using var folder = new TemporaryFolder();
        var saved = new Dictionary<string, Tensor> { ["x"] = ones(16 << 20) };
        var before = GC.GetAllocatedBytesForCurrentThread();
        SafeTensors.Save(folder.File("x.safetensors"), saved);
        SafeTensors.Load(folder.File("x.safetensors"));
        Assert.InRange(GC.GetAllocatedBytesForCurrentThread() - before, 0, 1 << 20); // the tensor has 64 MB
    }

    [Fact]
    public void Files_above_4_GB_are_read_whole()
    {
        const long Length = (1L << 32) + 5;
        using var scope = NewDisposeScope();
        using var stream = new HugeStream(
            SafeTensorsFile.Make($$"""{"x":{"dtype":"U8","shape":[{{Length}}],"data_offsets":[0,{{Length}}]} }"""), Length);
        var x = SafeTensors.Read(stream, "memory")["x"];
        Assert.Equal(Length, x.numel());
        Assert.Equal(Length, stream.DataRead);
        Assert.Equal(HugeStream.LastByte, x[Length - 1].item<byte>());
    }

    [Fact]
    public void A_failed_save_leaves_the_old_file_and_no_other()
    {
        using var scope = NewDisposeScope();
        using var folder = new TemporaryFolder();
        var path = folder.File("x.safetensors");
        SafeTensors.Save(path, new Dictionary<string, Tensor> { ["x"] = ones(3) });
        var old = File.ReadAllBytes(path);

        var late = new Dictionary<string, Tensor> { ["a"] = ones(1000), ["x"] = zeros(3) };
        Assert.Throws<IOException>(() => SafeTensors.Save(path, new FailsAtData(late)));
        var disposed = ones(3);
        disposed.Dispose();
        Assert.Throws<ArgumentException>(() => SafeTensors.Save(path, new Dictionary<string, Tensor> { ["x"] = disposed }));

        Assert.Equal(old, File.ReadAllBytes(path));
        Assert.Equal([path], Directory.GetFiles(folder.Path));
        SafeTensors.Save(path, late); // and a good one replaces it
        AssertSame(late, SafeTensors.Load(path));
    }

    [Fact]
    public void Tensors_that_cannot_be_saved_are_named()
    {
        using var scope = NewDisposeScope();
        using var folder = new TemporaryFolder();
        var path = folder.File("x.safetensors");
        Assert.Contains("'x' has dtype ComplexFloat64", Refused("x", zeros([2], ScalarType.ComplexFloat64)));
        Assert.Contains("sparse", Refused("x", zeros([2, 2]).to_sparse()));
        Assert.Contains("meta", Refused("x", zeros([2], device: META)));
        Assert.Contains("reserved", Refused("__metadata__", zeros(2)));
        Refused("\ud800", zeros(2)); // half of a surrogate pair has no UTF-8
        Assert.Throws<DirectoryNotFoundException>(() => SafeTensors.Save(folder.File("no/x"), new Dictionary<string, Tensor>()));
        Assert.Empty(Directory.GetFileSystemEntries(folder.Path));

        string Refused(string name, Tensor tensor) =>
            Assert.ThrowsAny<ArgumentException>(() => SafeTensors.Save(path, new Dictionary<string, Tensor> { [name] = tensor })).Message;
    }

    private static Tensor Filled(int[] shape, ScalarType dtype, int seed)
    {
        using var generator = new Generator((ulong)seed);
        return randint(0, 2 + seed % 100, shape.Select(size => (long)size).ToArray(), generator: generator).to(dtype);
    }

    private static void AssertSame(Dictionary<string, Tensor> expected, Dictionary<string, Tensor> actual)
    {
        Assert.Equal(expected.Keys.Order(StringComparer.Ordinal), actual.Keys.Order(StringComparer.Ordinal));
        Assert.All(expected, pair => Assert.True(SafeTensorsFile.Same(pair.Value, actual[pair.Key]), pair.Key));
    }

    /// <summary>A header and data of which only the last byte is ever written, so that the pages of the tensor stay untouched.</summary>
    private sealed class HugeStream(byte[] header, long dataLength) : Stream
    {
        public const byte LastByte = 42;

        public long DataRead { get; private set; }
        public override long Position { get; set; }
        public override long Length => header.Length + dataLength;
        public override bool CanRead => true;
        public override bool CanSeek => true;
        public override bool CanWrite => false;

        public override int Read(Span<byte> buffer)
        {
            var count = (int)Math.Min(buffer.Length, Length - Position);
            if (Position < header.Length)
                header.AsSpan((int)Position, count).CopyTo(buffer);
            else
                DataRead += count;
            Position += count;
            if (Position == Length)
                buffer[count - 1] = LastByte;
            return count;
        }

        public override int Read(byte[] buffer, int offset, int count) => Read(buffer.AsSpan(offset, count));
        public override void Flush() { }
        public override long Seek(long offset, SeekOrigin origin) => throw new NotSupportedException();
        public override void SetLength(long value) => throw new NotSupportedException();
        public override void Write(byte[] buffer, int offset, int count) => throw new NotSupportedException();
    }

    /// <summary>Tensors that can be listed, but not fetched for writing.</summary>
    private sealed class FailsAtData(Dictionary<string, Tensor> tensors) : IReadOnlyDictionary<string, Tensor>
    {
        public Tensor this[string key] => key == "x" ? throw new IOException("planned") : tensors[key];
        public IEnumerable<string> Keys => tensors.Keys;
        public IEnumerable<Tensor> Values => tensors.Values;
        public int Count => tensors.Count;
        public bool ContainsKey(string key) => tensors.ContainsKey(key);
        public bool TryGetValue(string key, out Tensor value) => tensors.TryGetValue(key, out value!);
        public IEnumerator<KeyValuePair<string, Tensor>> GetEnumerator() => tensors.GetEnumerator();
        System.Collections.IEnumerator System.Collections.IEnumerable.GetEnumerator() => GetEnumerator();
    }
}
