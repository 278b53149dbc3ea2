using System.Text;
using LanguageModel;
using LanguageModel.Data;
using Xunit;

namespace FlaSharp.Tests.Samples;

public sealed class TextTests
{
    [Fact]
    public void Order_zero_entropy_of_known_distributions()
    {
        Assert.Equal(0, Entropy.OrderZero("aaaa"u8));
        Assert.Equal(Math.Log(2), Entropy.OrderZero("abab"u8), 12);
        Assert.Equal(0.25 * Math.Log(4) + 0.75 * Math.Log(4 / 3.0), Entropy.OrderZero("abbb"u8), 12);
        Assert.Equal(0, Entropy.OrderZero([]));
    }

    [Theory]
    [InlineData("bytes"), InlineData("cl100k")]
    public void Text_comes_back_from_its_tokens_one_by_one(string name)
    {
        const string Text = "Gated linear attention: naïve 注意 🎉 done.\n";
        ITextTokenizer tokenizer = Tokenizers.Create(name);
        int[] tokens = tokenizer.Encode(Text);
        var stream = new TextStream(tokenizer);

        Assert.Equal(Text, string.Concat(tokens.Select(stream.Append)));
        Assert.Equal(Text, tokenizer.Decode(tokens));
        Assert.Equal(Encoding.UTF8.GetByteCount(Text), tokenizer.CountBytes(tokens));
        Assert.All(tokens, token => Assert.InRange(token, 0, tokenizer.VocabSize - 1));
    }

    [Fact]
    public void The_documentation_of_the_sdk_is_plain_text_without_repeated_sentences()
    {
        IReadOnlyList<string> files = DotNetDocumentation.FindFiles();
        Assert.SkipWhen(files.Count == 0, "There is no .NET SDK on this machine.");
        string file = files.Single(path => Path.GetFileName(path) == "System.Collections.xml");
        string text = string.Concat(DotNetDocumentation.Read([file]));

        Assert.Contains("System.Collections.BitArray\nManages a compact array of bit values, which are represented as Booleans, "
            + "where true indicates that the bit is on (1)", text, StringComparison.Ordinal);
        Assert.DoesNotContain("<see", text, StringComparison.Ordinal);
        Assert.DoesNotContain('`', text);
        string[] sentences = [.. text.Split('\n').Where(line => line.StartsWith("Returns: ", StringComparison.Ordinal))];
        Assert.NotEmpty(sentences);
        Assert.Equal(sentences.Distinct(), sentences);
    }

    [Fact]
    public void Too_little_text_is_refused_with_the_number_needed()
    {
        var corpus = Corpus.FromText(new string('a', 1000), new ByteTokenizer());
        corpus.RequireSequences(50);
        var error = Assert.Throws<UserError>(() => corpus.RequireSequences(51));
        Assert.Contains("1,000 tokens, too few for --seq 51", error.Message, StringComparison.Ordinal);
    }
}
