namespace LanguageModel.Data;

/// <summary>Turns text into tokens and back.</summary>
internal interface ITextTokenizer
{
    /// <summary>As given to --tokenizer.</summary>
    string Name { get; }

    int VocabSize { get; }

    int[] Encode(string text);

    /// <summary>The text of tokens; a character that they hold only a part of becomes U+FFFD.</summary>
    string Decode(ReadOnlySpan<int> tokens);

    /// <summary>Length of the tokens' text in UTF-8, so that losses compare per byte.</summary>
    int CountBytes(ReadOnlySpan<int> tokens);
}
