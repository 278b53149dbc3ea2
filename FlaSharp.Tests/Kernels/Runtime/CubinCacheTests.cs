using System.Runtime.Versioning;
using System.Security.Cryptography;
using FlaSharp.Kernels.Runtime;
using FlaSharp.Tests.TestSupport;
using Xunit;

namespace FlaSharp.Tests.Kernels.Runtime;

public sealed class CubinCacheTests : IDisposable
{
    private readonly TemporaryFolder _temporary = new();

    private string Folder => _temporary.File("kernels");

    public void Dispose() => _temporary.Dispose();

    [Fact]
    public void What_was_added_is_found_by_another_process()
    {
        var kernel = Kernel(1);
        new CubinCache(Folder).Add(Key(1), kernel);
        AssertSame(kernel, new CubinCache(Folder).Find(Key(1)));
        Assert.Null(new CubinCache(Folder).Find(Key(2)));
        Assert.Equal((1, new FileInfo(TheFile()).Length), new CubinCache(Folder).Size());
    }

    [Fact]
    public void Files_of_another_extension_are_another_cache()
    {
        var (kernels, facts) = (new CubinCache(Folder), new CubinCache(Folder, maxBytes: 1, extension: ".facts"));
        kernels.Add(Key(1), Kernel(1));
        facts.Add(Key(1), Kernel(2));
        facts.Add(Key(2), Kernel(3)); // in place of the one before: it is beyond the limit alone

        AssertSame(Kernel(1), kernels.Find(Key(1)));
        Assert.Null(facts.Find(Key(1)));
        AssertSame(Kernel(3), facts.Find(Key(2)));
        Assert.Equal((1, 1), (kernels.Size().files, facts.Size().files));
    }

    [Fact]
    public void An_empty_log_and_an_empty_image_are_kept_too()
    {
        var cache = new CubinCache(Folder);
        cache.Add(Key(1), new CompiledKernel([], ""));
        AssertSame(new CompiledKernel([], ""), cache.Find(Key(1)));
    }

    [Fact]
    public void Any_flipped_bit_makes_a_file_unused()
    {
        var cache = new CubinCache(Folder);
        cache.Add(Key(1), Kernel(1));
        var file = TheFile();
        var written = File.ReadAllBytes(file);
        for (var bit = 0; bit < written.Length * 8; bit++)
        {
            var damaged = (byte[])written.Clone();
            damaged[bit / 8] ^= (byte)(1 << (bit % 8));
            Overwrite(file, damaged);
            Assert.Null(cache.Find(Key(1)));
        }
        Overwrite(file, written);
        AssertSame(Kernel(1), cache.Find(Key(1)));
    }

    [Fact]
    public void Any_other_length_makes_a_file_unused()
    {
        var cache = new CubinCache(Folder);
        cache.Add(Key(1), Kernel(1));
        var file = TheFile();
        var written = File.ReadAllBytes(file);
        for (var length = 0; length < written.Length; length++)
        {
            Overwrite(file, written[..length]);
            Assert.Null(cache.Find(Key(1)));
        }
        Overwrite(file, [.. written, 0]);
        Assert.Null(cache.Find(Key(1)));
    }

    [Fact]
    public void A_foreign_file_is_unused_and_then_replaced()
    {
        var cache = new CubinCache(Folder);
        cache.Add(Key(1), Kernel(1));
        var first = TheFile();
        cache.Add(Key(2), Kernel(2));
        var second = Directory.GetFiles(Folder).Single(file => file != first);

        File.Copy(first, second, overwrite: true); // whole, but of another kernel
        Assert.Null(cache.Find(Key(2)));
        Overwrite(second, "#!/bin/sh"u8.ToArray());
        Assert.Null(cache.Find(Key(2)));

        cache.Add(Key(2), Kernel(2));
        AssertSame(Kernel(2), cache.Find(Key(2)));
    }

    [Fact]
    [UnsupportedOSPlatform("windows")]
    public void Files_are_the_users_alone_and_others_files_unused()
    {
        Assert.SkipWhen(OperatingSystem.IsWindows(), "Windows has no such file modes.");
        var cache = new CubinCache(Folder);
        cache.Add(Key(1), Kernel(1));
        Assert.Equal(UnixFileMode.UserRead | UnixFileMode.UserWrite, File.GetUnixFileMode(TheFile()));
        Assert.Equal(UnixFileMode.UserRead | UnixFileMode.UserWrite | UnixFileMode.UserExecute, File.GetUnixFileMode(Folder));

        File.SetUnixFileMode(TheFile(), UnixFileMode.UserRead | UnixFileMode.UserWrite | UnixFileMode.GroupWrite);
        Assert.Null(cache.Find(Key(1)));
    }

    [Fact]
    public void The_files_unused_for_longest_go_first()
    {
        var cache = new CubinCache(Folder, maxBytes: 20_000); // four of the files below
        for (var i = 0; i < 4; i++)
        {
            cache.Add(Key(i), Kernel(i, 4000));
            File.SetLastWriteTimeUtc(FileOf(i), DateTime.UtcNow.AddMinutes(i - 10));
        }
        Assert.NotNull(cache.Find(Key(0))); // now the most recent
        cache.Add(Key(4), Kernel(4, 4000));
        cache.Add(Key(5), Kernel(5, 4000));

        Assert.Equal([true, false, false, true, true, true], Enumerable.Range(0, 6).Select(i => File.Exists(FileOf(i))));
        Assert.True(cache.Size().bytes <= 20_000);
    }

    [Fact]
    public void What_an_interrupted_process_left_is_deleted()
    {
        var cache = new CubinCache(Folder);
        cache.Add(Key(1), Kernel(1));
        var (old, recent) = (Path.Combine(Folder, "old.tmp"), Path.Combine(Folder, "recent.tmp"));
        File.WriteAllText(old, "");
        File.WriteAllText(recent, ""); // of a process that may be writing
        File.SetLastWriteTimeUtc(old, DateTime.UtcNow.AddHours(-2));
        cache.Add(Key(2), Kernel(2));
        Assert.False(File.Exists(old));
        Assert.True(File.Exists(recent));
    }

    [Fact]
    public void Many_writers_and_readers_at_once_see_whole_kernels_or_none()
    {
        const int Keys = 4;
        var seen = 0;
        var messages = MessagesOf(() => Parallel.For(0, 16, new ParallelOptions { MaxDegreeOfParallelism = 16 }, worker =>
        {
            var cache = new CubinCache(Folder, maxBytes: 60_000); // as another process's; some deleting too
            for (var i = 0; i < 50; i++)
            {
                var id = (worker + i) % Keys;
                if (cache.Find(Key(id)) is { } found)
                {
                    AssertSame(Kernel(id, 20_000), found);
                    Interlocked.Increment(ref seen);
                }
                else
                {
                    cache.Add(Key(id), Kernel(id, 20_000));
                }
            }
        }));
        Assert.Empty(messages);
        Assert.True(seen > 0);
        Assert.Empty(Directory.GetFiles(Folder, "*.tmp"));
    }

    [Fact]
    public void A_folder_that_cannot_be_made_means_no_caching_and_one_message()
    {
        var blocked = _temporary.File("file");
        File.WriteAllText(blocked, "");
        var folder = Path.Combine(blocked, "kernels");
        var messages = MessagesOf(() =>
        {
            var cache = new CubinCache(folder);
            cache.Add(Key(1), Kernel(1));
            cache.Add(Key(1), Kernel(1));
            Assert.Null(cache.Find(Key(1)));
            Assert.NotNull(cache.Problem);
            Assert.Equal((0, 0L), cache.Size());
        });
        Assert.StartsWith($"Compiled kernels are not kept in {folder}: ", Assert.Single(messages), StringComparison.Ordinal);
    }

    [Fact]
    [UnsupportedOSPlatform("windows")]
    public void A_folder_that_can_only_be_read_serves_what_it_has()
    {
        Assert.SkipWhen(OperatingSystem.IsWindows() || Environment.UserName == "root", "Nothing is read-only for this user.");
        var cache = new CubinCache(Folder);
        cache.Add(Key(1), Kernel(1));
        File.SetUnixFileMode(Folder, UnixFileMode.UserRead | UnixFileMode.UserExecute);
        try
        {
            var messages = MessagesOf(() => cache.Add(Key(2), Kernel(2)));
            Assert.Contains(Folder, Assert.Single(messages), StringComparison.Ordinal);
            AssertSame(Kernel(1), cache.Find(Key(1)));
        }
        finally
        {
            File.SetUnixFileMode(Folder, UnixFileMode.UserRead | UnixFileMode.UserWrite | UnixFileMode.UserExecute);
        }
    }

    [Fact]
    public void A_file_that_cannot_be_put_in_place_leaves_nothing_behind()
    {
        var cache = new CubinCache(Folder);
        cache.Add(Key(1), Kernel(1));
        var file = TheFile();
        File.Delete(file);
        Directory.CreateDirectory(Path.Combine(file, "occupied"));
        MessagesOf(() => cache.Add(Key(1), Kernel(1)));
        Assert.Null(cache.Find(Key(1)));
        Assert.NotNull(cache.Problem);
        Assert.Empty(Directory.GetFiles(Folder));
    }

    [Theory]
    [InlineData("", null, "/home/u/.cache/flasharp/kernels")]
    [InlineData("", "/caches", "/caches/flasharp/kernels")]
    [InlineData("FLASHARP_CACHE_DIR=/mine", "/caches", "/mine")]
    [InlineData("FLASHARP_CACHE=0", "/caches", null)]
    [InlineData("FLASHARP_CACHE=1", "/caches", "/caches/flasharp/kernels")]
    public void The_folder_is_where_the_environment_says(string setting, string? caches, string? expected)
    {
        Assert.SkipWhen(OperatingSystem.IsWindows(), "Windows has another folder.");
        var folder = CubinCache.FolderOf(name => name switch
        {
            "HOME" => "/home/u",
            "XDG_CACHE_HOME" => caches,
            _ when setting.StartsWith(name + "=", StringComparison.Ordinal) => setting[(name.Length + 1)..],
            _ => null,
        });
        Assert.Equal(expected, folder);
        if (folder is null)
            Assert.Null(new CubinCache(folder).Find(Key(1)));
    }

    private static List<string> MessagesOf(Action action)
    {
        var (before, messages) = (CudaRuntime.Message, new List<string>());
        CudaRuntime.Message = messages.Add;
        try
        {
            action();
        }
        finally
        {
            CudaRuntime.Message = before;
        }
        return messages;
    }

    private static byte[] Key(int i) => SHA256.HashData([(byte)i]);

    private static CompiledKernel Kernel(int i, int length = 100)
    {
        var image = new byte[length];
        new Random(i).NextBytes(image);
        return new CompiledKernel(image, $"log {i} \u00e4");
    }

    private static void AssertSame(CompiledKernel expected, CompiledKernel? actual)
    {
        Assert.NotNull(actual);
        Assert.Equal(expected.Image, actual.Image);
        Assert.Equal(expected.Log, actual.Log);
    }

    private static void Overwrite(string file, byte[] bytes)
    {
        using var stream = new FileStream(file, FileMode.Truncate);
        stream.Write(bytes);
    }

    private string TheFile() => Assert.Single(Directory.GetFiles(Folder));

    private string FileOf(int i) => Path.Combine(Folder, Convert.ToHexStringLower(Key(i)) + ".cubin");
}
