using System.Text;
using FlaSharp.IO;
using FlaSharp.Tests.TestSupport;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests.IO;

/// <summary>Each rule of the format, broken on purpose.</summary>
public sealed class SafeTensorsHostileTests
{
    [Theory]
    // JSON
    [InlineData("", 0, "does not start with '{'")]
    [InlineData(" {}", 0, "does not start with '{'")]
    [InlineData("[]", 0, "does not start with '{'")]
    [InlineData("{", 0, "not valid JSON")]
    [InlineData("{} x", 0, "not valid JSON")]
    [InlineData("{}{}", 0, "not valid JSON")]
    [InlineData("{}\0\0", 0, "not valid JSON")]
    [InlineData("""{"x":1,}""", 0, "x must be an object")]
    [InlineData("""{"x":{"a":[[[[[[[[[[]]]]]]]]]]}}""", 0, "not valid JSON")]
    [InlineData("""{"\ud800":{}}""", 0, "not Unicode")]
    // Names
    [InlineData("""{"x":{"dtype":"F32","shape":[],"data_offsets":[0,4]},"x":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}""", 4, "'x' is there twice")]
    [InlineData("""{"x":{"dtype":"F32","shape":[],"data_offsets":[0,4]},"\u0078":{"dtype":"F32","shape":[],"data_offsets":[4,8]}}""", 8, "'x' is there twice")]
    [InlineData("""{"__metadata__":{},"__metadata__":{}}""", 0, "'__metadata__' is there twice")]
    [InlineData("""{"__metadata__":{"a":"1","a":"2"}}""", 0, "'a' twice")]
    [InlineData("""{"__metadata__":{"a":1}}""", 0, "__metadata__.a must be a string")]
    [InlineData("""{"__metadata__":[]}""", 0, "__metadata__ must be an object")]
    // Fields
    [InlineData("""{"x":{"dtype":"F32","dtype":"F32","shape":[],"data_offsets":[0,4]}}""", 4, "dtype twice")]
    [InlineData("""{"x":{"shape":[],"data_offsets":[0,4]}}""", 4, "lacks")]
    [InlineData("""{"x":{"dtype":"F32","data_offsets":[0,4]}}""", 4, "lacks")]
    [InlineData("""{"x":{"dtype":"F32","shape":[]}}""", 4, "lacks")]
    [InlineData("""{"x":{"dtype":7,"shape":[],"data_offsets":[0,4]}}""", 4, "x.dtype must be a string")]
    [InlineData("""{"x":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}}""", 4, "dtype F8_E4M3; supported are")]
    [InlineData("""{"x":{"dtype":"f32","shape":[],"data_offsets":[0,4]}}""", 4, "dtype f32; supported are")]
    [InlineData("""{"x":{"dtype":"F32","shape":null,"data_offsets":[0,4]}}""", 4, "x.shape must be an array")]
    // Shapes
    [InlineData("""{"x":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}""", 4, "x.shape must hold whole numbers")]
    [InlineData("""{"x":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}}""", 4, "x.shape must hold whole numbers")]
    [InlineData("""{"x":{"dtype":"F32","shape":[1e0],"data_offsets":[0,4]}}""", 4, "x.shape must hold whole numbers")]
    [InlineData("""{"x":{"dtype":"F32","shape":["1"],"data_offsets":[0,4]}}""", 4, "x.shape must hold whole numbers")]
    [InlineData("""{"x":{"dtype":"F32","shape":[[1]],"data_offsets":[0,4]}}""", 4, "x.shape must hold whole numbers")]
    [InlineData("""{"x":{"dtype":"F32","shape":[9223372036854775808],"data_offsets":[0,4]}}""", 4, "x.shape must hold whole numbers")]
    [InlineData("""{"x":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}""", 0, "is too large")]
    [InlineData("""{"x":{"dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,0]}}""", 0, "is too large")]
    [InlineData("""{"x":{"dtype":"U8","shape":[0,4294967296,4294967296],"data_offsets":[0,0]}}""", 0, "is too large")]
    [InlineData("""{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}""", 4, "takes 8 bytes")]
    // Offsets
    [InlineData("""{"x":{"dtype":"U8","shape":[4],"data_offsets":[4,0]}}""", 4, "not a range")]
    [InlineData("""{"x":{"dtype":"U8","shape":[4],"data_offsets":[0]}}""", 4, "not a range")]
    [InlineData("""{"x":{"dtype":"U8","shape":[4],"data_offsets":[0,4,8]}}""", 4, "more than 2")]
    [InlineData("""{"x":{"dtype":"U8","shape":[4],"data_offsets":[-4,0]}}""", 4, "whole numbers")]
    [InlineData("""{"x":{"dtype":"U8","shape":[5],"data_offsets":[0,5]}}""", 4, "not a range within the 4 bytes")]
    [InlineData("""{"x":{"dtype":"U8","shape":[9000000000000],"data_offsets":[0,9000000000000]}}""", 4, "not a range within the 4 bytes")]
    [InlineData("""{"x":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"y":{"dtype":"U8","shape":[3],"data_offsets":[1,4]}}""", 4, "'y' starts at byte 1")]
    [InlineData("""{"x":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"y":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}""", 4, "starts at byte 0")]
    [InlineData("""{"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"y":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}}""", 4, "'y' starts at byte 2")]
    [InlineData("""{"x":{"dtype":"U8","shape":[3],"data_offsets":[1,4]}}""", 4, "'x' starts at byte 1")]
    [InlineData("""{"x":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}""", 4, "take 3 bytes, but 4 follow")]
    [InlineData("{}", 1, "take 0 bytes, but 1 follow")]
    public void A_broken_header_is_refused_with_its_reason(string header, int dataLength, string reason)
    {
        var refused = Assert.Throws<SafeTensorsException>(() => SafeTensorsFile.Read(SafeTensorsFile.Make(header, dataLength)));
        Assert.Contains(reason, refused.Message);
        Assert.Contains("'memory'", refused.Message);
        Assert.Equal("memory", refused.Path);
    }

    [Theory]
    [InlineData("{}")]
    [InlineData("{}      ")]
    [InlineData("""{"__metadata__":{}}""")]
    [InlineData("""{"x":{"dtype":"F32","shape":[0,3],"data_offsets":[0,0],"later":{"a":[1,{}]}}}""")]
    [InlineData("""{"y":{"dtype":"I8","shape":[],"data_offsets":[0,1]},"x":{"dtype":"I8","shape":[0],"data_offsets":[0,0]}}""", 1)]
    [InlineData("""{"y":{"dtype":"I8","shape":[2],"data_offsets":[1,3]},"x":{"dtype":"I8","shape":[],"data_offsets":[0,1]}}""", 3)]
    public void An_unusual_header_within_the_rules_is_read(string header, int dataLength = 0)
    {
        using var scope = NewDisposeScope();
        SafeTensorsFile.Read(SafeTensorsFile.Make(header, dataLength));
    }

    [Theory]
    [InlineData(10_000_000_000UL, "the limit is")]
    [InlineData(100_000_001UL, "the limit is")]
    [InlineData(ulong.MaxValue, "the limit is")]
    [InlineData(100_000_000UL, "but the file has 10 bytes")]
    [InlineData(3UL, "but the file has 10 bytes")]
    public void A_header_length_that_cannot_be_is_refused(ulong length, string reason)
    {
        var file = SafeTensorsFile.Make("{}"u8, [], length);
        Assert.Contains(reason, Assert.Throws<SafeTensorsException>(() => SafeTensorsFile.Read(file)).Message);
    }

    [Fact]
    public void Files_too_short_for_a_header_are_refused()
    {
        for (var length = 0; length < 8; length++)
            Assert.Throws<SafeTensorsException>(() => SafeTensorsFile.Read(new byte[length]));
    }

    [Fact]
    public void A_header_that_is_not_utf8_is_refused()
    {
        var file = SafeTensorsFile.Make([(byte)'{', (byte)'"', 0xff, (byte)'"', (byte)':', (byte)'{', (byte)'}', (byte)'}'], []);
        Assert.Contains("UTF-8", Assert.Throws<SafeTensorsException>(() => SafeTensorsFile.Read(file)).Message);
    }

    [Fact]
    public void A_long_shape_and_deep_nesting_cost_nothing()
    {
        var shape = string.Concat(Enumerable.Repeat("1,", 1_000_000)) + "1";
        var wide = SafeTensorsFile.Make("""{"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}""".Replace("[1]", $"[{shape}]"), 1);
        Assert.Contains("more than 64", Assert.Throws<SafeTensorsException>(() => SafeTensorsFile.Read(wide)).Message);
        var deep = SafeTensorsFile.Make(Encoding.UTF8.GetBytes("{\"x\":{\"a\":" + new string('[', 10_000_000)), []);
        Assert.Contains("JSON", Assert.Throws<SafeTensorsException>(() => SafeTensorsFile.Read(deep)).Message);
    }

    [Fact]
    public void A_bool_is_0_or_1()
    {
        using var scope = NewDisposeScope();
        Assert.Equal([true, false, true], Read([1, 0, 1])["x"].data<bool>().ToArray());
        Assert.Contains("neither 0 nor 1", Assert.Throws<SafeTensorsException>(() => Read([1, 0, 2])).Message);

        static Dictionary<string, Tensor> Read(byte[] data) =>
            SafeTensorsFile.Read(SafeTensorsFile.Make("""{"x":{"dtype":"BOOL","shape":[3],"data_offsets":[0,3]}}"""u8, data));
    }

    [Fact]
    public void Nothing_is_left_of_a_file_that_fails_half_way()
    {
        var header = """{"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},"x":{"dtype":"BOOL","shape":[1],"data_offsets":[3,4]}}"""u8;
        var file = SafeTensorsFile.Make(header, [1, 2, 3, 4]);
        using var scope = NewDisposeScope();
        Assert.Throws<SafeTensorsException>(() => SafeTensorsFile.Read(file));
        Assert.Equal(0, scope.DisposablesCount);
    }

    [Fact]
    public void A_missing_file_is_told_from_a_broken_one()
    {
        using var folder = new TemporaryFolder();
        Assert.Throws<FileNotFoundException>(() => SafeTensors.Load(folder.File("x.safetensors")));
        Assert.Throws<ArgumentNullException>(() => SafeTensors.Load(null!));
        File.WriteAllText(folder.File("x.safetensors"), "version https://git-lfs.github.com/spec/v1");
        Assert.Contains(folder.File("x.safetensors"),
            Assert.Throws<SafeTensorsException>(() => SafeTensors.LoadMetadata(folder.File("x.safetensors"))).Message);
    }
}
