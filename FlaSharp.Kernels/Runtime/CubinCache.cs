using System.Buffers.Binary;
using System.Security.Cryptography;
using System.Text;

namespace FlaSharp.Kernels.Runtime;

/// <summary>
/// Compiled kernels in a folder of the user, each in a file named by its key. A file that is not exactly what this class wrote is
/// not used, and any number of processes may share a folder: files appear by renaming, complete. Trouble with the folder means no
/// caching, not an error.
/// </summary>
/// <remarks>A file: magic, SHA-256 of all that follows, key, length of the log, log in UTF-8, image.</remarks>
internal sealed class CubinCache
{
    public const string FolderVariable = "FLASHARP_CACHE_DIR";
    public const string SwitchVariable = "FLASHARP_CACHE";
    public const long DefaultMaxBytes = 256 << 20;

    private const string TemporaryExtension = ".tmp";
    private const UnixFileMode OthersAccess = (UnixFileMode)0b000_111_111;

    private static readonly byte[] s_magic = "FlaSharp cubin 1"u8.ToArray();

    private readonly long _maxBytes;
    private readonly string _extension;

    /// <param name="folder">Made when the first kernel is written; null for no caching.</param>
    /// <param name="maxBytes">Beyond it the files that were not used for longest are deleted.</param>
    /// <param name="extension">Of the files; those of another one are another cache's.</param>
    public CubinCache(string? folder, long maxBytes = DefaultMaxBytes, string extension = ".cubin") =>
        (Folder, _maxBytes, _extension) = (folder, maxBytes, extension);

    /// <summary>The one that the environment asks for.</summary>
    public static CubinCache Default { get; } = new(FolderOf(Environment.GetEnvironmentVariable));

    public string? Folder { get; }

    /// <summary>Why the last kernel was not written; null if it was.</summary>
    public string? Problem { get; private set; }

    /// <summary>The folder that the environment asks for, or null.</summary>
    public static string? FolderOf(Func<string, string?> environment)
    {
        if (environment(SwitchVariable) == "0")
            return null;
        if (environment(FolderVariable) is { Length: > 0 } chosen)
            return chosen;
        var user = environment("XDG_CACHE_HOME") is { Length: > 0 } caches && !OperatingSystem.IsWindows() ? caches
            : OperatingSystem.IsWindows() ? Environment.GetFolderPath(Environment.SpecialFolder.LocalApplicationData)
            : environment("HOME") is { Length: > 0 } home ? Path.Combine(home, ".cache")
            : null;
        return string.IsNullOrEmpty(user) ? null : Path.Combine(user, "flasharp", "kernels");
    }

    /// <summary>The kernel of a key, or null.</summary>
    public CompiledKernel? Find(byte[] key)
    {
        if (Folder is null)
            return null;
        try
        {
            var path = PathOf(key);
            // Only what this user alone can have written.
            if (!File.Exists(path) || (!OperatingSystem.IsWindows() && (File.GetUnixFileMode(path) & OthersAccess) != 0))
                return null;
            var kernel = Decode(File.ReadAllBytes(path), key);
            if (kernel is not null)
                MarkAsUsed(path);
            return kernel;
        }
        catch (Exception e) when (IsTrouble(e))
        {
            return null;
        }
    }

    /// <summary>Keeps a kernel, as far as the folder allows.</summary>
    public void Add(byte[] key, CompiledKernel kernel)
    {
        if (Folder is null)
            return;
        var temporary = Path.Combine(Folder, Guid.NewGuid().ToString("N") + TemporaryExtension);
        try
        {
            MakeFolder();
            Write(temporary, Encode(key, kernel));
            File.Move(temporary, PathOf(key), overwrite: true);
            Trim(PathOf(key));
            Problem = null;
        }
        catch (Exception e) when (IsTrouble(e))
        {
            Problem = e.Message;
            Delete(temporary);
            CudaRuntime.Tell($"Compiled kernels are not kept in {Folder}: {e.Message} Name another folder in {FolderVariable}.");
        }
    }

    /// <summary>Files and bytes in the folder.</summary>
    public (int files, long bytes) Size()
    {
        try
        {
            var files = Files(_extension);
            return (files.Count, files.Sum(file => file.Length));
        }
        catch (Exception e) when (IsTrouble(e))
        {
            return (0, 0);
        }
    }

    private static byte[] Encode(byte[] key, CompiledKernel kernel)
    {
        var log = Encoding.UTF8.GetBytes(kernel.Log);
        var content = new byte[key.Length + sizeof(int) + log.Length + kernel.Image.Length];
        key.CopyTo(content, 0);
        BinaryPrimitives.WriteInt32LittleEndian(content.AsSpan(key.Length), log.Length);
        log.CopyTo(content, key.Length + sizeof(int));
        kernel.Image.CopyTo(content, content.Length - kernel.Image.Length);
        return [.. s_magic, .. SHA256.HashData(content), .. content];
    }

    private static CompiledKernel? Decode(ReadOnlySpan<byte> file, byte[] key)
    {
        var content = s_magic.Length + SHA256.HashSizeInBytes;
        var log = key.Length + sizeof(int);
        if (file.Length < content + log || !file.StartsWith(s_magic)
            || !file[s_magic.Length..content].SequenceEqual(SHA256.HashData(file[content..])) || !file[content..].StartsWith(key))
        {
            return null;
        }
        file = file[content..];
        var logLength = BinaryPrimitives.ReadInt32LittleEndian(file[key.Length..]);
        return new CompiledKernel(file[(log + logLength)..].ToArray(), Encoding.UTF8.GetString(file.Slice(log, logLength)));
    }

    private static void Write(string path, byte[] bytes)
    {
        var options = new FileStreamOptions
        {
            Mode = FileMode.CreateNew,
            Access = FileAccess.Write,
            PreallocationSize = bytes.Length, // a full disk is noticed here
        };
        if (!OperatingSystem.IsWindows())
            options.UnixCreateMode = UnixFileMode.UserRead | UnixFileMode.UserWrite;
        using var stream = new FileStream(path, options);
        stream.Write(bytes);
    }

    private void MakeFolder()
    {
        if (OperatingSystem.IsWindows())
            Directory.CreateDirectory(Folder!); // in the user's profile, which is the user's alone
        else
            Directory.CreateDirectory(Folder!, UnixFileMode.UserRead | UnixFileMode.UserWrite | UnixFileMode.UserExecute);
    }

    private void Trim(string written)
    {
        // What a process left that ended while it wrote.
        foreach (var leftover in Files(TemporaryExtension).Where(file => file.LastWriteTimeUtc < DateTime.UtcNow.AddHours(-1)))
            Delete(leftover.FullName);
        var files = Files(_extension);
        var bytes = files.Sum(file => file.Length);
        files.RemoveAll(file => file.Name == Path.GetFileName(written));
        foreach (var oldest in files.OrderBy(file => file.LastWriteTimeUtc))
        {
            if (bytes <= _maxBytes)
                return;
            Delete(oldest.FullName);
            bytes -= oldest.Length;
        }
    }

    /// <summary>Exists also reads the size and the time, which another process's deletion then no longer takes away.</summary>
    private List<FileInfo> Files(string extension) =>
        [.. new DirectoryInfo(Folder!).EnumerateFiles("*" + extension).Where(file => file.Exists)];

    private string PathOf(byte[] key) => Path.Combine(Folder!, Convert.ToHexStringLower(key) + _extension);

    private static void MarkAsUsed(string path)
    {
        try
        {
            File.SetLastWriteTimeUtc(path, DateTime.UtcNow);
        }
        catch (Exception e) when (IsTrouble(e))
        {
            // A folder that can only be read serves too.
        }
    }

    private static void Delete(string path)
    {
        try
        {
            File.Delete(path);
        }
        catch (Exception e) when (IsTrouble(e))
        {
            // Another process deleted it, or uses it.
        }
    }

    private static bool IsTrouble(Exception e) =>
        e is IOException or UnauthorizedAccessException or NotSupportedException or ArgumentException;
}
