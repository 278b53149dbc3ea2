using System.Buffers.Binary;
using System.Diagnostics;
using System.Text;
using FlaSharp.IO;
using FlaSharp.Tests.TestSupport;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests.IO;

/// <summary>Damaged files end in tensors or in a <see cref="SafeTensorsException"/>: nothing else, soon, and without much memory.</summary>
public sealed class SafeTensorsFuzzTests
{
    private const int Files = 120_000;

    private static readonly string[] s_tokens =
    [
        "0", "1", "4", "-1", "1.5", "1e9", "4294967296", "4611686018427387904", "9223372036854775807", "18446744073709551616",
        "[", "]", "{", "}", ",", ":", "\"", "\\", "\\ud800", "\\u0000", "null", "true", "\"F64\"", "\"BOOL\"", "\"F8_E5M2\"", "\"shape\"",
        "\"dtype\"", "\"data_offsets\"", "\"__metadata__\"", "\"a\"", "[[[[[[[[[[", "{\"a\":{\"a\":{\"a\":{", " ", "\n", "/**/", "[]", "{}",
    ];

    [Fact]
    public void Damaged_files_are_read_or_refused()
    {
        var seeds = Seeds();
        var random = new Random(20);
        var read = 0;
        var watch = Stopwatch.StartNew();
        var managed = GC.GetTotalAllocatedBytes();
        GC.Collect();
        GC.WaitForPendingFinalizers();
        var live = Tensor.TotalCount;
        for (var i = 0; i < Files; i++)
        {
            var file = Mutate(random, seeds);
            using var scope = NewDisposeScope();
            try
            {
                SafeTensorsFile.Read(file);
                read++;
            }
            catch (SafeTensorsException exception)
            {
                Assert.Contains("'memory'", exception.Message);
            }
        }
        Assert.InRange(watch.Elapsed.TotalSeconds, 0, 30);
        Assert.InRange((GC.GetTotalAllocatedBytes() - managed) / Files, 0, 64 << 10); // bytes per file, garbage included
        Assert.Equal(live, Tensor.TotalCount);
        Assert.InRange(read, Files / 100, Files / 2); // the mutations are neither all deadly nor all harmless
    }

    private static byte[][] Seeds()
    {
        using var scope = NewDisposeScope();
        using var folder = new TemporaryFolder();
        var metadata = new Dictionary<string, string> { ["format"] = "pt", ["config"] = "{\"a\": [1, \"\\u00e9\"]}" };
        return
        [
            Saved([], null),
            Saved(new() { ["a"] = ones(3) }, null),
            Saved(new() { ["a"] = ones([2, 3], ScalarType.Float64), ["b"] = zeros([5], ScalarType.Bool), ["c"] = zeros([0, 2]) }, metadata),
            Saved(Enumerable.Range(0, 12).ToDictionary(i => $"layers.{i}.weight", i => ones([i, 2], ScalarType.BFloat16)), metadata),
        ];

        byte[] Saved(Dictionary<string, Tensor> tensors, Dictionary<string, string>? metadata)
        {
            SafeTensors.Save(folder.File("x"), tensors, metadata);
            return File.ReadAllBytes(folder.File("x"));
        }
    }

    private static byte[] Mutate(Random random, byte[][] seeds)
    {
        var file = seeds[random.Next(seeds.Length)];
        for (var count = 1 + random.Next(3); count > 0; count--)
            file = random.Next(7) switch
            {
                0 => FlipBits(random, file),
                1 => file[..random.Next(file.Length + 1)],
                2 => [.. file, .. Noise(random)],
                3 => Splice(random, file, seeds[random.Next(seeds.Length)]),
                4 => EditLength(random, file),
                _ => EditJson(random, file),
            };
        return file;
    }

    private static byte[] FlipBits(Random random, byte[] file)
    {
        if (file.Length == 0)
            return file;
        file = [.. file];
        for (var count = 1 + random.Next(4); count > 0; count--)
            file[random.Next(file.Length)] ^= (byte)(1 << random.Next(8));
        return file;
    }

    private static byte[] Noise(Random random)
    {
        var noise = new byte[1 + random.Next(16)];
        random.NextBytes(noise);
        return noise;
    }

    private static byte[] Splice(Random random, byte[] file, byte[] other) =>
        [.. file[..random.Next(file.Length + 1)], .. other[random.Next(other.Length)..]];

    private static byte[] EditLength(Random random, byte[] file)
    {
        if (file.Length < 8)
            return file;
        file = [.. file];
        var length = BinaryPrimitives.ReadUInt64LittleEndian(file);
        ulong[] choices = [length - 1, length + 1, length + 8, (ulong)file.Length, (ulong)file.Length - 8, 0, 1UL << random.Next(64), ulong.MaxValue];
        BinaryPrimitives.WriteUInt64LittleEndian(file, choices[random.Next(choices.Length)]);
        return file;
    }

    /// <summary>Changes the header as text and corrects its length, so that the damage reaches the rules behind the syntax.</summary>
    private static byte[] EditJson(Random random, byte[] file)
    {
        if (file.Length < 8)
            return file;
        var length = BinaryPrimitives.ReadUInt64LittleEndian(file);
        if (length > (ulong)(file.Length - 8))
            return file;
        var json = Encoding.UTF8.GetString(file, 8, (int)length);
        var (from, to) = Piece(random, json);
        var token = s_tokens[random.Next(s_tokens.Length)];
        json = random.Next(4) switch
        {
            0 => json[..from] + json[to..],
            1 => json[..to] + json[from..],
            2 => json[..from] + token + json[from..],
            _ => json[..from] + token + json[to..],
        };
        return SafeTensorsFile.Make(Encoding.UTF8.GetBytes(json), file.AsSpan(8 + (int)length));
    }

    /// <summary>A number, a string or a bracket, more often than not whole.</summary>
    private static (int from, int to) Piece(Random random, string json)
    {
        if (json.Length == 0)
            return (0, 0);
        var from = random.Next(json.Length);
        while (from > 0 && char.IsLetterOrDigit(json[from]) && char.IsLetterOrDigit(json[from - 1]))
            from--;
        var to = from + 1;
        while (to < json.Length && char.IsLetterOrDigit(json[from]) && char.IsLetterOrDigit(json[to]))
            to++;
        return (from, to);
    }
}
