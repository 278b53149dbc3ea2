using System.Text;
using Microsoft.ML.Tokenizers;

namespace LanguageModel.Data;

/// <summary>The byte-pair encoding "cl100k_base", from Microsoft.ML.Tokenizers.</summary>
internal sealed class Cl100kTokenizer : ITextTokenizer
{
    private readonly TiktokenTokenizer _tokenizer = TiktokenTokenizer.CreateForEncoding("cl100k_base");

    public string Name => "cl100k";

    /// <summary>The highest token (100,276) and one, rounded up to a multiple of 64, which suits matrix products.</summary>
    public int VocabSize => 100_288;

    public int[] Encode(string text) => [.. _tokenizer.EncodeToIds(text)];

    public string Decode(ReadOnlySpan<int> tokens) => _tokenizer.Decode(tokens.ToArray());

    public int CountBytes(ReadOnlySpan<int> tokens) => Encoding.UTF8.GetByteCount(Decode(tokens));
}
