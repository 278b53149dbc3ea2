using FlaSharp.Interop;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.IO;

/// <summary>
/// Reads and writes safetensors files, the format of Hugging Face checkpoints: dtypes F64, F32, F16, BF16, I64, I32, I16, I8, U8
/// and BOOL. Files from strangers are safe to open: the header is checked in full before memory is taken.
/// </summary>
public static class SafeTensors
{
    private const int Piece = 1 << 30; // bytes per read or write: a span holds less than 2 GB

    /// <summary>Reads all tensors of a file, without a second copy in memory.</summary>
    /// <param name="path">A safetensors file of any size.</param>
    /// <param name="device">Where the tensors go; the CPU if absent.</param>
    /// <returns>The tensors by name, in the caller's dispose scope, without gradient.</returns>
    /// <exception cref="SafeTensorsException">The file breaks a rule of the format or has a dtype that TorchSharp lacks.</exception>
    public static Dictionary<string, Tensor> Load(string path, Device? device = null)
    {
        using var stream = Open(path);
        return Read(stream, path, device);
    }

    /// <summary>Reads the strings that the writer of a file stored beside the tensors; empty if there are none.</summary>
    /// <exception cref="SafeTensorsException">The header breaks a rule of the format.</exception>
    public static Dictionary<string, string> LoadMetadata(string path)
    {
        using var stream = Open(path);
        return SafeTensorsHeader.Read(stream, path).Metadata;
    }

    /// <summary>
    /// Reads the weights of a Hugging Face model: <c>model.safetensors</c>, or else the files that
    /// <c>model.safetensors.index.json</c> names.
    /// </summary>
    /// <param name="directory">A folder as <c>save_pretrained</c> writes it.</param>
    /// <param name="device">Where the tensors go; the CPU if absent.</param>
    /// <returns>The tensors by name, in the caller's dispose scope, without gradient.</returns>
    /// <exception cref="FileNotFoundException">The folder has neither file, or a file that the index names is missing.</exception>
    /// <exception cref="SafeTensorsException">
    /// A file breaks a rule of the format, the index names a file outside the folder, or a tensor is not in its file.
    /// </exception>
    public static Dictionary<string, Tensor> LoadDirectory(string directory, Device? device = null)
    {
        ArgumentNullException.ThrowIfNull(directory);
        var single = Path.Combine(directory, "model.safetensors");
        return File.Exists(single) ? Load(single, device) : SafeTensorsIndex.Load(directory, device);
    }

    /// <summary>Writes tensors of any device and layout to a file, which is replaced only when all is written.</summary>
    /// <param name="path">The file; its folder must exist.</param>
    /// <param name="tensors">The tensors by name, dense. One that appears under two names is stored twice.</param>
    /// <param name="metadata">Strings to store beside them.</param>
    /// <exception cref="ArgumentException">A tensor's dtype or layout is not supported, or a name is reserved.</exception>
    public static void Save(
        string path, IReadOnlyDictionary<string, Tensor> tensors, IReadOnlyDictionary<string, string>? metadata = null)
    {
        ArgumentException.ThrowIfNullOrEmpty(path);
        ArgumentNullException.ThrowIfNull(tensors);
        var entries = Arrange(tensors);
        var header = SafeTensorsHeader.Format(entries, metadata ?? new Dictionary<string, string>());

        var target = Path.GetFullPath(path);
        var temporary = $"{target}.{Guid.NewGuid():N}.tmp";
        try
        {
            using (var stream = new FileStream(temporary, FileMode.CreateNew, FileAccess.Write, FileShare.None, bufferSize: 0))
            {
                stream.Write(header);
                foreach (var entry in entries)
                    WriteData(stream, tensors[entry.Name], entry.Length);
                stream.Flush(flushToDisk: true);
            }
            File.Move(temporary, target, overwrite: true);
        }
        finally
        {
            File.Delete(temporary); // still there only after a failure
        }
    }

    /// <summary>Reads the tensors of a stream that stands at the start of a file, all or the named ones.</summary>
    internal static Dictionary<string, Tensor> Read(
        Stream stream, string path, Device? device = null, IReadOnlySet<string>? only = null)
    {
        var tensors = new Dictionary<string, Tensor>();
        try
        {
            var header = SafeTensorsHeader.Read(stream, path);
            var data = stream.Position;
            foreach (var entry in header.Tensors.Where(entry => only is null || only.Contains(entry.Name)))
            {
                stream.Position = data + entry.Begin;
                tensors.Add(entry.Name, ReadTensor(stream, path, entry, device));
            }
            return tensors;
        }
        catch (Exception exception)
        {
            foreach (var tensor in tensors.Values)
                tensor.Dispose();
            if (exception is EndOfStreamException)
                throw new SafeTensorsException(path, "it became shorter while it was read.", exception);
            throw;
        }
    }

    internal static FileStream Open(string path)
    {
        ArgumentException.ThrowIfNullOrEmpty(path);
        return new FileStream(path, FileMode.Open, FileAccess.Read, FileShare.Read, bufferSize: 0, FileOptions.SequentialScan);
    }

    private static Tensor ReadTensor(Stream stream, string path, SafeTensorsEntry entry, Device? device)
    {
        var tensor = empty(entry.Shape, entry.DType, CPU);
        try
        {
            for (var position = 0L; position < entry.Length; position += Piece)
            {
                var piece = Bytes(tensor, position, entry.Length);
                stream.ReadExactly(piece);
                if (entry.DType == ScalarType.Bool && piece.ContainsAnyExceptInRange((byte)0, (byte)1))
                    throw new SafeTensorsException(path, $"'{entry.Name}' is BOOL and has a byte that is neither 0 nor 1.");
            }
            GC.KeepAlive(tensor);
            if (device is null || device.type == DeviceType.CPU)
                return tensor;
            using (tensor)
                return tensor.to(device);
        }
        catch
        {
            tensor.Dispose();
            throw;
        }
    }

    private static void WriteData(FileStream stream, Tensor tensor, long length)
    {
        using var scope = NewDisposeScope();
        var dense = tensor.detach().cpu().contiguous();
        for (var position = 0L; position < length; position += Piece)
            stream.Write(Bytes(dense, position, length));
        GC.KeepAlive(dense);
    }

    /// <summary>The piece of a dense CPU tensor's memory that starts at a byte. The caller keeps the tensor alive.</summary>
    private static unsafe Span<byte> Bytes(Tensor tensor, long position, long length) =>
        new((byte*)TensorPointer.Of(tensor) + position, (int)Math.Min(Piece, length - position));

    /// <summary>Checks what is to be saved, and gives each tensor its place in the order of the reference writer.</summary>
    private static List<SafeTensorsEntry> Arrange(IReadOnlyDictionary<string, Tensor> tensors)
    {
        foreach (var (name, tensor) in tensors)
        {
            if (name == SafeTensorsHeader.MetadataKey)
                throw new ArgumentException($"No tensor can have the name {name}, which is reserved.", nameof(tensors));
            if (tensor is null || tensor.IsInvalid)
                throw new ArgumentException($"The tensor '{name}' is null or disposed.", nameof(tensors));
            if (!SafeTensorsDType.IsSupported(tensor.dtype))
                throw new ArgumentException(
                    $"The tensor '{name}' has dtype {tensor.dtype}; supported are {SafeTensorsDType.Supported}.", nameof(tensors));
            if (tensor.is_sparse || tensor.device_type == DeviceType.META)
                throw new ArgumentException($"The tensor '{name}' is sparse or has no data (meta device).", nameof(tensors));
        }

        var entries = new List<SafeTensorsEntry>(tensors.Count);
        var position = 0L;
        foreach (var (name, tensor) in tensors.OrderBy(pair => SafeTensorsDType.Rank(pair.Value.dtype))
                     .ThenBy(pair => pair.Key, StringComparer.Ordinal))
        {
            var end = position + tensor.numel() * SafeTensorsDType.SizeOf(tensor.dtype);
            entries.Add(new SafeTensorsEntry(name, tensor.dtype, tensor.shape, position, end));
            position = end;
        }
        return entries;
    }
}
