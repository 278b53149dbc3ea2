namespace LanguageModel.Data;

internal static class Tokenizers
{
    public static readonly string[] Names = ["bytes", "cl100k"];

    public static ITextTokenizer Create(string name) => name switch
    {
        "bytes" => new ByteTokenizer(),
        "cl100k" => new Cl100kTokenizer(),
        _ => throw new UserError($"The tokenizer '{name}' is unknown: use {string.Join(" or ", Names)}."),
    };
}
