using System.Text;

namespace LanguageModel.Data;

/// <summary>The bytes of UTF-8 are the tokens.</summary>
internal sealed class ByteTokenizer : ITextTokenizer
{
    public string Name => "bytes";

    public int VocabSize => 256;

    public int[] Encode(string text) => Array.ConvertAll(Encoding.UTF8.GetBytes(text), value => (int)value);

    public string Decode(ReadOnlySpan<int> tokens)
    {
        var bytes = new byte[tokens.Length];
        for (int i = 0; i < bytes.Length; i++)
            bytes[i] = (byte)tokens[i];
        return Encoding.UTF8.GetString(bytes);
    }

    public int CountBytes(ReadOnlySpan<int> tokens) => tokens.Length;
}
