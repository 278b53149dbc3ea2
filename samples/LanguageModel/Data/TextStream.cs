namespace LanguageModel.Data;

/// <summary>Tokens to text, one at a time: holds back a character until its last byte has come.</summary>
internal sealed class TextStream(ITextTokenizer tokenizer)
{
    /// <summary>No character spans more tokens: what is still incomplete then is not UTF-8.</summary>
    private const int Longest = 4;

    private readonly List<int> _pending = [];

    public string Append(int token)
    {
        _pending.Add(token);
        string text = tokenizer.Decode(_pending.ToArray());
        if (text.EndsWith('\uFFFD') && _pending.Count < Longest)
            return "";
        _pending.Clear();
        return text;
    }
}
